#!/usr/bin/env bash
# A real SLURM on this machine alone, for tests: munge, slurmctld and several slurmd on loopback,
# as root, without systemd or cgroups. Each node has 4 CPUs, 8 GB and two fake GPUs, whatever is really there.
#   start.sh DIR [NODES] [--accounting] [--port PORT] [--conf KEY=VALUE]...
# DIR holds everything: configuration, logs, state, munge's key; jobs of an earlier start are forgotten.
# Then: export SLURM_CONF=DIR/etc/slurm.conf
# --accounting  also MariaDB and slurmdbd, so that sacct answers
# --port        the first of NODES + 3 ports in a row; a second cluster needs others (default 16817)
# --conf        replaces a line of slurm.conf, e.g. --conf MaxArraySize=1001
# Packages: slurm-wlm munge; for --accounting also slurmdbd mariadb-server slurm-wlm-mysql-plugin
set -euo pipefail

usage() { sed -n '4,10s/^# *//p' "$0" >&2; exit 2; }
die() { echo "start.sh: $*" >&2; exit 1; }

DIR='' NODES=2 ACCOUNTING='' PORT=16817 CONF=()
places=()
while [ $# -gt 0 ]; do
  case $1 in
    --accounting) ACCOUNTING=yes ;;
    --port) PORT=${2:?a number after --port}; shift ;;
    --conf) CONF+=("${2:?KEY=VALUE after --conf}"); shift ;;
    -*) usage ;;
    *) places+=("$1") ;;
  esac
  shift
done
[[ ${#places[@]} = [12] ]] || usage
NODES=${places[1]:-2}
[[ $NODES =~ ^[1-9][0-9]*$ && $PORT =~ ^[1-9][0-9]*$ ]] || usage
# slurm.conf cannot quote, so a path in it must be plain
[[ ${places[0]} =~ ^[A-Za-z0-9_./-]+$ ]] || die "DIR may hold only letters, digits and _ . / - : ${places[0]}"
[ "$(id -u)" = 0 ] || die "must be root: slurmd starts jobs as their users, and fake GPUs are device nodes"
for program in munged slurmctld slurmd sbatch; do
  command -v "$program" >/dev/null || die "no $program: apt-get install --no-install-recommends slurm-wlm munge"
done

mkdir -p "${places[0]}"
DIR=$(cd "${places[0]}" && pwd -P)
mkdir -p "$DIR"/{etc,state,log,run,dev}
export SLURM_CONF=$DIR/etc/slurm.conf
# a daemon started from inside a job would pass for a part of that job
unset SLURM_JOB_ID SLURM_JOBID
alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }
[ ${#DIR} -le 60 ] || die "DIR is too long for a socket's name (60 characters at most): $DIR"
alive "$DIR/run/slurmctld.pid" && die "$DIR has a cluster that runs: stop.sh $DIR first"

for port in $(seq "$PORT" $((PORT + NODES + 2))); do
  ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || die "port $port is taken: give others with --port"
done
# a cluster starts empty: jobs of an earlier one in DIR would keep its nodes from being idle
rm -rf "$DIR"/state/*

# munge with a key and a socket of its own, so that neither the machine's munge nor another test's is touched
chmod 755 "$DIR" "$DIR/run"
[ -s "$DIR/etc/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$DIR/etc/munge.key")
alive "$DIR/run/munged.pid" || munged --force --key-file="$DIR/etc/munge.key" --socket="$DIR/run/munge.socket" \
  --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/state/munge.seed" \
  2>>"$DIR/log/munged.start" || { cat "$DIR/log/munged.start" >&2; die "munged does not start"; }

HOST=$(hostname -s)
storage=AccountingStorageType=accounting_storage/none
[ -z "$ACCOUNTING" ] || storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + NODES + 1))
AccountingStoragePass=$DIR/run/munge.socket
AccountingStorageTRES=gres/gpu"

cat >"$SLURM_CONF" <<EOC
ClusterName=testcluster
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# without cred_expire a requeued job waits two minutes for its old credential
AuthInfo=socket=$DIR/run/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# memory is sampled, and what is over its limit is killed: cgroups would do that on a true cluster
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
# look for work at once and not each half minute
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
# nodes have the CPUs and memory written below, not those of this machine
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/state/spool.%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=10
KillWait=15
MinJobAge=300
InactiveLimit=0
MaxArraySize=101
MaxJobCount=20000
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=0
GresTypes=gpu
$storage
NodeName=n[1-$NODES] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=[$((PORT + 1))-$((PORT + NODES))] CPUs=4 RealMemory=8000 Gres=gpu:a100:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 DefMemPerCPU=100 OverSubscribe=NO
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 DefMemPerCPU=100 PreemptMode=OFF
EOC
for line in ${CONF[@]+"${CONF[@]}"}; do
  sed -i "/^${line%%=*}=/d" "$SLURM_CONF"
  echo "$line" >>"$SLURM_CONF"
done

# a GPU must be a character device or SLURM does not set CUDA_VISIBLE_DEVICES; these two are /dev/null
for gpu in 0 1; do [ -c "$DIR/dev/nvidia$gpu" ] || mknod "$DIR/dev/nvidia$gpu" c 1 3; done
cat >"$DIR/etc/gres.conf" <<EOC
AutoDetect=off
NodeName=n[1-$NODES] Name=gpu Type=a100 File=$DIR/dev/nvidia[0-1]
EOC
echo CgroupPlugin=cgroup/v1 >"$DIR/etc/cgroup.conf"

if [ -n "$ACCOUNTING" ]; then
  for program in slurmdbd mariadbd mariadb-install-db; do
    command -v "$program" >/dev/null ||
      die "no $program: apt-get install --no-install-recommends slurmdbd mariadb-server slurm-wlm-mysql-plugin"
  done
  mkdir -p "$DIR/db"; chown mysql:mysql "$DIR/db"
  if [ ! -d "$DIR/db/data/mysql" ]; then
    mariadb-install-db --no-defaults --user=mysql --datadir="$DIR/db/data" --skip-test-db \
      --auth-root-authentication-method=normal >"$DIR/log/mariadb.log" 2>&1 ||
      { cat "$DIR/log/mariadb.log" >&2; die "MariaDB cannot make its tables"; }
  fi
  setsid mariadbd --no-defaults --user=mysql --datadir="$DIR/db/data" --socket="$DIR/db/mariadb.socket" \
    --pid-file="$DIR/db/mariadbd.pid" --bind-address=127.0.0.1 --port=$((PORT + NODES + 2)) \
    --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
    >>"$DIR/log/mariadb.log" 2>&1 </dev/null &
  sql() { mariadb --no-defaults -S "$DIR/db/mariadb.socket" -uroot "$@"; }
  for _ in $(seq 300); do sql -e 'select 1' >/dev/null 2>&1 && break; sleep .1; done
  sql -e "create database if not exists slurm_acct_db;
    create user if not exists 'slurm'@'localhost' identified by 'slurm';
    create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm';
    grant all on slurm_acct_db.* to 'slurm'@'localhost'; grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
  (umask 077 && cat >"$DIR/etc/slurmdbd.conf") <<EOC
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.socket
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PORT + NODES + 1))
SlurmUser=root
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + NODES + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
EOC
  slurmdbd
  for _ in $(seq 30); do timeout 2 sacctmgr -n show cluster >/dev/null 2>&1 && break; sleep .5; done
  timeout 5 sacctmgr -n show cluster >/dev/null || { cat "$DIR/log/slurmdbd.log" >&2; die "slurmdbd does not answer"; }
  [ -n "$(sacctmgr -n show cluster testcluster)" ] || sacctmgr -i add cluster testcluster >/dev/null
fi

slurmctld
for node in $(seq "$NODES"); do slurmd -N "n$node"; done
for _ in $(seq 300); do
  [ "$(timeout 2 sinfo -h -t idle -o %D -p main 2>/dev/null)" = "$NODES" ] && break
  sleep .1
done
if [ "$(timeout 5 sinfo -h -t idle -o %D -p main)" != "$NODES" ]; then
  sinfo -N -l >&2 || true
  tail -n 20 "$DIR"/log/slurm*.log >&2
  die "not all nodes are idle after 30 s; stop.sh $DIR clears up"
fi
sinfo -N -p main -o '%N %T %c %m %G'
echo "export SLURM_CONF=$SLURM_CONF"
