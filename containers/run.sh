#!/usr/bin/env bash
# Run a program on this host, or inside an Apptainer image, as one task of a cluster or of this machine:
#
#   containers/run.sh [--image IMAGE.sif] [--nv] [--bind SPEC]... [--env NAME=VALUE]... -- PROGRAM [ARGUMENT]...
#
# SPEC: PATH (the same path inside), or SOURCE:TARGET, or SOURCE:TARGET:ro; a PATH may hold any character
# but a newline.
# The container has a clean environment but for SUBMITIT_*, SLURM_*, NSDCAP_*, the thread counts,
# CUDA_VISIBLE_DEVICES and what --env adds. Signals reach the program; `scontrol requeue` called inside is done
# out here once the program has ended. Exit code: the program's; 2 usage, 65 an image that is none.
set -uo pipefail

refuse() { # CODE MESSAGE
  echo "containers/run.sh: $2" >&2
  exit "$1"
}

image='' nv=() binds=() pairs=()
while [ $# -gt 0 ]; do
  case $1 in
    --image | --bind | --env)
      [ $# -ge 2 ] || refuse 2 "$1: a value is missing after it"
      case $1 in
        --image) image=$2 ;;
        --bind) binds+=("$2") ;;
        --env) pairs+=("$2") ;;
      esac
      shift 2
      ;;
    --nv) nv=(--nv) && shift ;;
    -h | --help) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0" && exit 0 ;;
    --) shift && break ;;
    *) refuse 2 "found '$1', expected an option or -- before the program; see --help" ;;
  esac
done
[ $# -gt 0 ] || refuse 2 "no program: give it after --"
for pair in ${pairs[@]+"${pairs[@]}"}; do
  [[ $pair =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || refuse 2 "--env: found '$pair', expected NAME=VALUE"
done

quoted() { # a field of --mount's comma-separated line
  printf '"%s"' "${1//\"/\"\"}"
}

mount_line() { # SPEC
  local source=$1 target=$1 ending=''
  if [ ! -e "$1" ] && [[ $1 == *:* ]]; then
    IFS=: read -r source target ending rest <<<"$1"
    case $ending${rest:+:$rest} in
      '' | rw | ro) ;;
      *) refuse 2 "--bind: found '$1', expected PATH, SOURCE:TARGET or SOURCE:TARGET:ro (a path that holds ':' can only be bound as PATH)" ;;
    esac
  fi
  [[ $1 != *$'\n'* ]] || refuse 2 "--bind: a path with a newline cannot be bound"
  [ -e "$source" ] || refuse 2 "--bind: '$source' is not there (of '$1')"
  [[ $source == /* && $target == /* ]] || refuse 2 "--bind: found '$1', expected absolute paths"
  printf 'type=bind,%s,%s' "$(quoted "source=$source")" "$(quoted "destination=$target")"
  [ "$ending" != ro ] || printf ',ro'
}

command=("$@") exchange=''
if [ -n "$image" ]; then
  [[ $image != *://* ]] || refuse 2 "--image $image is an address: pull it first, as in apptainer pull nsdcap.sif $image"
  [ -f "$image" ] || refuse 65 "--image $image: there is no such file; pull or build it first"
  [ "$(head -c 41 -- "$image" | tail -c 9 | tr -d '\0')" = SIF_MAGIC ] ||
    refuse 65 "--image $image is not an Apptainer image (SIF), or is only part of one; pull or build it again"
  command -v apptainer >/dev/null || refuse 2 "there is no apptainer on the PATH of $(hostname); load its module or install it"
  image=$(realpath -- "$image")

  # what the program inside asks of SLURM's scontrol, which is out here: the stand-in leaves it in `asked`
  exchange=$(mktemp -d "${TMPDIR:-/tmp}/nsdcap-task.XXXXXX") || refuse 2 "no temporary folder can be made in ${TMPDIR:-/tmp}"
  trap 'rm -rf -- "$exchange"' EXIT
  mkdir "$exchange/bin"
  cat >"$exchange/bin/scontrol" <<'STAND_IN'
#!/bin/sh
[ "$1" = requeue ] || { echo "scontrol: in the container only 'scontrol requeue' is there" >&2; exit 1; }
printf '%s\0' "$@" > /nsdcap-host/part && mv /nsdcap-host/part /nsdcap-host/asked
STAND_IN
  chmod 755 "$exchange/bin/scontrol"
  export APPTAINERENV_PREPEND_PATH=/nsdcap-host/bin${APPTAINERENV_PREPEND_PATH:+:$APPTAINERENV_PREPEND_PATH}

  for name in $(compgen -e); do
    case $name in
      SUBMITIT_* | SLURM_* | NSDCAP_* | CUDA_VISIBLE_DEVICES | OMP_NUM_THREADS | OPENBLAS_NUM_THREADS | MKL_NUM_THREADS)
        export "APPTAINERENV_$name=${!name}"
        ;;
    esac
  done
  export APPTAINERENV_PYTHONNOUSERSITE=1 # packages in the user's home are not the image's
  for pair in ${pairs[@]+"${pairs[@]}"}; do export "APPTAINERENV_$pair"; done

  # --no-eval: else a $(...) in a variable's value would be run
  command=(apptainer exec --cleanenv --no-eval ${nv[@]+"${nv[@]}"})
  for spec in ${binds[@]+"${binds[@]}"}; do
    line=$(mount_line "$spec") || exit $?
    command+=(--mount "$line")
  done
  command+=(--mount "type=bind,$(quoted "source=$exchange"),destination=/nsdcap-host" "$image" "$@")
else
  for pair in ${pairs[@]+"${pairs[@]}"}; do export "${pair?}"; done
fi

# SLURM signals every process of a task, a terminal's Ctrl-C every one of the foreground, submitit's local executor
# this one alone: hand on what the program has not got, since handlers that log can break when called within themselves
child='' interrupted=''
hand_on() {
  interrupted=yes
  [ "${SUBMITIT_EXECUTOR:-}" = slurm ] || [ -z "$child" ] || kill -s "$1" "$child"
}
at_terminal() {
  local line fields
  line=$(cat /proc/$$/stat) && read -r -a fields <<<"${line##*) }" && [ "${fields[2]}" = "${fields[5]}" ]
}
trap 'hand_on USR2' USR2
trap 'hand_on TERM' TERM
trap 'hand_on CONT' CONT
trap 'if at_terminal; then interrupted=yes; else hand_on INT; fi' INT

# whoever kills this script alone, as submitit's local executor may, ends the program with it: the pipe then closes
exec {alive}> >(
  trap '' HUP INT QUIT TERM USR1 USR2
  exec >/dev/null 2>&1
  read -r child && ! read -r _ && kill -s KILL "$child"
)
exec {told}>&2 2>/dev/null # the shell would tell of a kill in its own words
(
  trap - INT QUIT # else the program would ignore them, and without <&0 read nothing
  exec 2>&"$told" {told}>&- {alive}>&-
  exec "${command[@]}"
) <&0 &
child=$!
(echo "$child" >&"$alive")
while :; do
  interrupted=''
  wait "$child"
  code=$?
  [ -n "$interrupted" ] || break
done
(echo ended >&"$alive")
exec 2>&"$told"

if [ -n "$exchange" ] && [ -s "$exchange/asked" ]; then
  mapfile -d '' -t asked <"$exchange/asked"
  if scontrol "${asked[@]}"; then
    echo "nsdcap: the task asked to go on later: scontrol ${asked[*]}" >&2
  else
    echo "nsdcap: scontrol ${asked[*]} failed: the task is not queued again" >&2
  fi
fi
if [ "$code" -gt 0 ]; then
  name=''
  [ "$code" -le 128 ] || name=$(kill -l $((code - 128)) 2>/dev/null)
  echo "nsdcap: the task ended with exit status $code${name:+ (signal $name)}" >&2
fi
exit "$code"
