#!/usr/bin/env bash
# Build the image of this checkout, test it, and write what it is made of beside it, in IMAGE.sif.json:
#
#   containers/build.sh [OPTION]... IMAGE.sif
#
#   --base BASE     a registry's image with Python 3.11 (default: python:3.11-slim-bookworm of Docker Hub)
#   --extras NAMES  extras of setup.cfg: cuda13,metrics,backbones (default), or '' for none
#   --java PACKAGE  Debian's package of Java, for METEOR and COCO's tokenizer: default-jre-headless (default),
#                   or '' for none; none by default with --wheels
#   --wheels DIR    install from this folder alone, without a network; see containers/wheels.sh
#   --no-https      the base's registry speaks plain http
#   --fakeroot      as apptainer build's; root without all capabilities needs it
#   --fast          compress little, for images that are thrown away
#   --force         replace an image that is there
#
# Exit codes: 0 built and tested, 1 the build or its test failed, 2 usage.
set -euo pipefail

refuse() {
  echo "containers/build.sh: $1" >&2
  exit 2
}

base='' extras=cuda13,metrics,backbones java=default wheels='' force='' options=() image=''
while [ $# -gt 0 ]; do
  case $1 in
    --base | --extras | --java | --wheels)
      [ $# -ge 2 ] || refuse "$1: a value is missing after it"
      declare "${1#--}=$2"
      shift 2
      ;;
    --no-https | --fakeroot) options+=("$1") && shift ;;
    --fast) options+=("--mksquashfs-args=-comp zstd -Xcompression-level 1") && shift ;;
    --force) force=yes && shift ;;
    -h | --help) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0" && exit 0 ;;
    -*) refuse "found '$1', which is no option; see --help" ;;
    *)
      [ -z "$image" ] || refuse "found '$image' and '$1', expected one image"
      image=$1
      shift
      ;;
  esac
done
[[ $image == *.sif ]] || refuse "found '$image', expected the image's name, ending in .sif"
[ -n "$force" ] || [ ! -e "$image" ] || refuse "$image is there; --force replaces it"
[[ $extras =~ ^[a-z0-9,]*$ ]] || refuse "--extras: found '$extras', expected names of setup.cfg's extras, as in cuda13"
[ "$java" != default ] || { [ -n "$wheels" ] && java='' || java=default-jre-headless; }
[[ $java =~ ^[a-z0-9.+-]*$ ]] || refuse "--java: found '$java', expected a package's name, as in default-jre-headless"
[ -z "$wheels" ] || [ -d "$wheels" ] || refuse "--wheels: there is no folder '$wheels'; containers/wheels.sh makes one"
[[ $wheels != *[\"$'\n']* ]] || refuse "--wheels: '$wheels' cannot be bound; name a folder without quotes"
command -v apptainer >/dev/null || refuse "there is no apptainer on the PATH; load its module or install it"
folder=$(realpath -- "$(dirname -- "$image")" 2>/dev/null) && [ -w "$folder" ] || refuse "the folder of $image is not there or cannot be written"
image=$folder/$(basename -- "$image")
[ -z "$wheels" ] || wheels=$(realpath -- "$wheels")

cd "$(dirname "$0")/.."
commit=unknown changed=unknown
if commit=$(git rev-parse HEAD 2>/dev/null); then
  changed=false
  [ -z "$(git status --porcelain -- nsdcap setup.cfg pyproject.toml Apptainer.def containers)" ] || changed=true
fi
default=$(sed -n 's/^ *BASE=//p' Apptainer.def)
options+=(--build-arg "BASE=${base:-$default}" --build-arg "EXTRAS=$extras" --build-arg "JAVA=$java" --build-arg "COMMIT=${commit:-unknown}")
if [ -n "$wheels" ]; then
  options+=(--mount "type=bind,\"source=$wheels\",destination=/mnt,ro" --build-arg WHEELS=/mnt)
fi

# under another name until it is whole and tested
part=$image.part.sif
trap 'rm -f -- "$part" "$part.json"' EXIT
started=$SECONDS
apptainer build --force --notest "${options[@]}" "$part" Apptainer.def || exit 1
built=$SECONDS
apptainer test --cleanenv "$part" || exit 1
apptainer exec --cleanenv "$part" python - "${base:-$default}" "$extras" "${commit:-unknown}" "$changed" \
  "$(sha256sum <"$part" | cut -d' ' -f1)" "$(apptainer --version)" >"$part.json" <<'PYTHON'
import datetime, json, pathlib, platform, sys

base, extras, commit, changed, digest, apptainer = sys.argv[1:]
packages = dict(
    line.split("==", 1) for line in pathlib.Path("/opt/nsdcap/packages.txt").read_text().split()
)
record = {
    "sha256": digest,
    "nsdcap": packages["nsdcap"],
    "commit": commit,
    "changed": {"true": True, "false": False}.get(changed),
    "base": base,
    "extras": extras,
    "python": platform.python_version(),
    "apptainer": apptainer.split()[-1],
    "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "packages": packages,
}
print(json.dumps(record, indent=2))
PYTHON
mv -f -- "$part" "$image"
mv -f -- "$part.json" "$image.json"
size=$(du -m -- "$image" | cut -f1)
echo "$image: $size MB, built in $((built - started)) s, tested in $((SECONDS - built)) s; what it holds: $image.json"
