#!/usr/bin/env bash
# Stop the cluster that start.sh started in DIR, with its jobs; no process is left. DIR itself stays.
# May be called again, or after a start that failed halfway.
#   stop.sh DIR          all of it
#   stop.sh DIR NODE     one node, at once and with all that runs on it, as if its power failed;
#                        SLURM_CONF=DIR/etc/slurm.conf slurmd -N NODE brings it back
set -uo pipefail
[ $# = 1 ] || [ $# = 2 ] || { sed -n '2,6s/^# *//p' "$0" >&2; exit 2; }
[ -d "$1" ] || exit 0
DIR=$(cd "$1" && pwd -P)
NODE=${2:-*}

# job_processes: slurmstepd of the node, which outlive slurmd, and all below them. A task whose slurmstepd
# is gone is known by its environment; one in a container has none of SLURM's, hence the way down the tree.
job_processes() {
  local pid tree found more
  found=$(
    # shellcheck disable=SC2013
    for pid in $(grep -lxs slurmstepd /proc/[0-9]*/comm | cut -d/ -f3); do
      [ -z "$(find "/proc/$pid/fd" -lname "$DIR/log/slurmd.$NODE.log" 2>/dev/null)" ] || echo "$pid"
    done
    # shellcheck disable=SC2013
    for pid in $(grep -lzxs "SLURM_CONF=$DIR/etc/slurm.conf" /proc/[0-9]*/environ | cut -d/ -f3); do
      ! grep -qzs "^SLURMD_NODENAME=${NODE/\*/}" "/proc/$pid/environ" || [ "$pid" = $$ ] || echo "$pid"
    done
  )
  tree=$(sed -n 's/^\([0-9]*\) .*) . \([0-9]*\) .*/\1 \2/p' /proc/[0-9]*/stat 2>/dev/null)
  while :; do
    more=$(awk 'NR == FNR { below[$1]; next } $2 in below && !($1 in below) { print $1 }' \
      <(echo "$found") <(echo "$tree"))
    [ -n "$more" ] || break
    found+=$'\n'$more
  done
  echo "$found"
}

# ours PIDFILE: its number, unless it belongs to another process by now
ours() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] &&
    grep -qzxs "SLURM_CONF=$DIR/etc/slurm.conf" "/proc/$pid/environ" && echo "$pid"
}

# end PIDFILE...: SIGTERM to all, SIGKILL to those that are there 5 s later
end() {
  local file pid pids=()
  for file; do pid=$(ours "$file") && kill "$pid" 2>/dev/null && pids+=("$pid"); done
  for pid in ${pids[@]+"${pids[@]}"}; do
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep .05; done
    kill -9 "$pid" 2>/dev/null
  done
  rm -f "$@"
}

kill_jobs() {
  local pids
  for _ in $(seq 20); do
    pids=$(job_processes)
    [ -n "$pids" ] || break
    # shellcheck disable=SC2086
    kill -9 $pids 2>/dev/null
    sleep .1
  done
}

if [ "$NODE" != '*' ]; then
  pid=$(ours "$DIR/run/slurmd.$NODE.pid") || { echo "stop.sh: no slurmd of $NODE runs in $DIR" >&2; exit 1; }
  kill -9 "$pid"
  rm -f "$DIR/run/slurmd.$NODE.pid"
  kill_jobs
  exit 0
fi
# the controller with the nodes, so that it requeues nothing of what is killed next
end "$DIR/run/slurmctld.pid" "$DIR"/run/slurmd.*.pid
kill_jobs
end "$DIR/run/slurmdbd.pid"
end "$DIR/db/mariadbd.pid" "$DIR/run/munged.pid"
