#!/usr/bin/env bash
# Push an image that containers/build.sh has made to a registry:
#
#   containers/publish.sh IMAGE.sif oras://HOST/NAME:TAG [--no-https]
#
# Log in first where the registry asks for it: apptainer registry login --username ME oras://HOST
set -euo pipefail

refuse() { # CODE MESSAGE
  echo "containers/publish.sh: $2" >&2
  exit "$1"
}

options=() words=()
for word in "$@"; do
  case $word in
    --no-https) options+=("$word") ;;
    -h | --help) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0" && exit 0 ;;
    -*) refuse 2 "found '$word', which is no option; see --help" ;;
    *) words+=("$word") ;;
  esac
done
[ ${#words[@]} -eq 2 ] || refuse 2 "found ${#words[@]} names, expected IMAGE.sif and oras://HOST/NAME:TAG"
image=${words[0]} address=${words[1]}
[[ $address =~ ^oras://[^/]+/.+:[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] || refuse 2 "found '$address', expected oras://HOST/NAME:TAG"
command -v apptainer >/dev/null || refuse 2 "there is no apptainer on the PATH; load its module or install it"
[ -f "$image" ] || refuse 65 "there is no image $image; containers/build.sh makes one"
[ -f "$image.json" ] || refuse 65 "$image.json is not there: what the image holds is unknown; build it with containers/build.sh"
written=$(sed -n 's/^  "sha256": "\([0-9a-f]*\)",$/\1/p' "$image.json")
found=$(sha256sum <"$image" | cut -d' ' -f1)
[ "$written" = "$found" ] ||
  refuse 65 "$image has sha256 $found, $image.json says ${written:-none}: it is not the image that was tested; build it again"

apptainer push "${options[@]}" "$image" "$address"
name=$(basename -- "$image")
echo "sha256 $found"
echo "pull it and run it:"
echo "  apptainer pull${options[*]:+ ${options[*]}} $name $address"
echo "  apptainer run --cleanenv --nv $name --help"
