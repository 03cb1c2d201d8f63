#!/usr/bin/env bash
# Gather the wheels of a CPU image in a folder, for containers/build.sh --extras metrics --wheels DIR:
#
#   containers/wheels.sh DIR
#
# The versions are those of containers/constraints.txt, for the Python that runs this ($PYTHON, else python3):
# it must be of the base's minor version (3.11). torch is its CPU build.
set -euo pipefail
[ $# -eq 1 ] && [[ $1 != -* ]] || { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0" >&2; exit 2; }
mkdir -p -- "$1"
folder=$(realpath -- "$1")
cd "$(dirname "$0")/.."
torch=$(sed -n 's/^torch==//p' containers/constraints.txt)
gather() {
  "${PYTHON:-python3}" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$folder" \
    --constraint containers/constraints.txt "$@"
}
gather --no-deps "torch==$torch+cpu" 2>/dev/null ||
  gather --no-deps "torch==$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
gather --find-links "$folder" "torch==$torch+cpu" setuptools ".[metrics]"
rm -f -- "$folder"/nsdcap-*.whl # the image's is built from the checkout
