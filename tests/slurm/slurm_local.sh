#!/usr/bin/env bash
# A real Slurm cluster on this one machine, on loopback only, for tests.
#
#   slurm_local.sh start  [DIR]   start (or complete) the cluster whose state is in DIR
#   slurm_local.sh status [DIR]   its daemons and nodes; exit 0 only if all daemons live
#   slurm_local.sh stop   [DIR]   cancel its jobs, end exactly the processes it started
#   slurm_local.sh guard  DIR PID stop it and remove DIR once process PID is gone
#
# DIR: state, config, logs. Default $SLURM_LOCAL_DIR, else (start only) a new mktemp folder.
# `start` prints `export ...` lines on stdout (all else goes to stderr), so use it as
#   eval "$(slurm_local.sh start /tmp/sl)"
# install.sh installs what it needs. Exit 3, after one line that says why: no Slurm can run here.
set -euo pipefail

NODES=${SLURM_LOCAL_NODES:-2}             # slurmd processes, all on this host
PREFIX=${SLURM_LOCAL_PREFIX:-127.0.0.1}   # of the nodes' names: 127.0.0.11, 127.0.0.12, ... resolve
                                          # everywhere; names such as n1 need lines in /etc/hosts
CPUS=${SLURM_LOCAL_CPUS:-4}               # CPUs a node claims to have (may exceed the real ones)
MEM=${SLURM_LOCAL_MEM_MB:-4000}           # memory a node claims to have
GPUS=${SLURM_LOCAL_GPUS:-2}               # GPUs a node claims to have (scheduling only)
MAX_ARRAY=${SLURM_LOCAL_MAX_ARRAY:-1001}  # no array index reaches it; fixed at the start, for slurmctld
                                          # keeps its value when reconfigured, whatever it then shows
DBD=${SLURM_LOCAL_ACCOUNTING:-1}          # 1: slurmdbd + mariadb, so that sacct (submitit) works
PORT=${SLURM_LOCAL_PORT:-}                # first of NODES+2 ports; default: a free block
export PATH=$PATH:/usr/sbin:/sbin

say() { echo "slurm_local: $*" >&2; }
die() { say "$*"; exit 1; }
cannot() { say "$*"; exit 3; }

# --- processes: run/NAME.pid holds "PID STARTTIME"; the start time guards against reused pids
start_time() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; set -- $s; [ "$1" != Z ] && echo "${20}"; }
alive() { local p t; { read -r p t <"$D/run/$1.pid"; } 2>/dev/null && [ -n "$t" ] && [ "$(start_time "$p")" = "$t" ]; }
spawn() {                                 # spawn NAME CMD...: in its own session, no inherited stdio
  local name=$1; shift
  alive "$name" && return
  setsid "$@" >>"$D/log/$name.out" 2>&1 </dev/null &
  echo "$! $(start_time $!)" >"$D/run/$name.pid"
}
wait_for() {                              # wait_for SECONDS WHAT CMD...
  local n=$(($1 * 10)) what=$2; shift 2
  until "$@" >"$D/log/wait.out" 2>&1; do
    ((n-- > 0)) || { tail -n 3 "$D/log/wait.out" >&2; die "no $what; see $D/log"; }
    sleep 0.1
  done
}
end() {                                   # end NAME: TERM, then KILL after 10 s
  local p _ n=100
  alive "$1" || { rm -f "$D/run/$1.pid"; return 0; }
  read -r p _ <"$D/run/$1.pid"; kill "$p" 2>/dev/null || true
  while alive "$1" && ((n-- > 0)); do sleep 0.1; done
  if alive "$1"; then kill -KILL "$p" 2>/dev/null || true; fi
  rm -f "$D/run/$1.pid"
}
daemons() {                               # in starting order
  echo munged
  [ "$DBD" = 1 ] && echo mariadbd slurmdbd
  echo slurmctld
  seq -f "slurmd-$PREFIX%.0f" "$NODES"
}
port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
free_ports() {                            # NODES+2 free ports outside the ephemeral and submitit's MASTER_PORT ranges
  local base i
  for _ in $(seq 50); do
    base=$((10000 + RANDOM % 10000))
    for i in $(seq 0 $((NODES + 1))); do port_free $((base + i)) || continue 2; done
    echo $base; return
  done
  die "no free ports"
}

configure() {                             # once per DIR; later starts keep it
  local user host i gres=
  user=$(id -un) host=$(hostname -s)
  mkdir -p "$D"/{munge,ctld,spool,log,run,dev}; chmod 755 "$D"
  mkdir -p -m 700 "$D/mysql"
  [ -s "$D/munge/key" ] || (umask 077; head -c 1024 /dev/urandom >"$D/munge/key")
  PORT=${PORT:-$(free_ports)}
  local acct="AccountingStorageType=accounting_storage/none"
  [ "$DBD" = 1 ] && acct="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$D/munge/sock
AccountingStorageTRES=gres/gpu"
  cat >"$D/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
# bind to what the hostname resolves to (checked to be 127.*), not to 0.0.0.0
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again (default 120 s)
AuthInfo=socket=$D/munge/sock,cred_expire=5
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$D/ctld
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.own
SlurmdPidFile=$D/run/slurmd-%n.own
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
# no cgroups, no cpu binding: works in containers and without systemd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
# believe the node lines below, whatever the hardware is
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=$((MEM / CPUS))
# schedule at once (defaults: a requeued job may wait a minute more)
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MaxArraySize=$MAX_ARRAY
# squeue remembers a finished job for as long as any test may ask
MinJobAge=3600
# TERM to KILL at a time limit or scancel: submitit's jobs ignore TERM (a requeue takes 7 s, whatever this is)
KillWait=2
# jobs of partition "high" preempt those of "main": USR signal (submitit), GraceTime, requeue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
# ids from a random start: submitit would take the results of an old cluster's job 7 for the new one's
FirstJobId=$((RANDOM % 900 * 1000 + 1001))
JobRequeue=1
GresTypes=gpu
$acct
CONF
  ((GPUS == 0)) || gres="Gres=gpu:$GPUS"
  for i in $(seq "$NODES"); do
    echo "NodeName=$PREFIX$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + 1 + i)) CPUs=$CPUS RealMemory=$MEM $gres" >>"$D/slurm.conf"
  done
  cat >>"$D/slurm.conf" <<CONF
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL Default=NO PriorityTier=100 PreemptMode=OFF MaxTime=INFINITE State=UP
CONF
  # a gpu needs a device file (a count alone is reported as 0); harmless copies of /dev/null do
  : >"$D/gres.conf"
  for ((i = 0; i < GPUS; i++)); do
    mknod "$D/dev/nvidia$i" c 1 3 2>/dev/null || : >>"$D/dev/nvidia$i"
    echo "Name=gpu File=$D/dev/nvidia$i" >>"$D/gres.conf"
  done
  echo CgroupAutomount=no >"$D/cgroup.conf"
  (umask 077; cat >"$D/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=$D/munge/sock
CommunicationParameters=NoInAddrAny
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=$user
PidFile=$D/run/slurmdbd.own
LogFile=$D/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CONF
  )
  # what a later stop, status or start must know
  printf 'NODES=%s PREFIX=%s DBD=%s\n' "$NODES" "$PREFIX" "$DBD" >"$D/settings"
}

start_mariadb() {                         # unix socket in a 0700 folder; no network, no passwords
  alive mariadbd && return
  local opts=(--no-defaults --user="$(id -un)" --datadir="$D/mysql/data" --innodb-buffer-pool-size=64M --innodb-log-file-size=16M)
  if [ ! -d "$D/mysql/data/mysql" ]; then  # what mariadb-install-db does, in 0.3 s
    mkdir -p "$D/mysql/data"
    { printf 'create database mysql;\nuse mysql;\nset @auth_root_socket=NULL;\n'
      cat /usr/share/mysql/mysql_system_tables.sql /usr/share/mysql/mysql_system_tables_data.sql
    } | mariadbd "${opts[@]}" --bootstrap >>"$D/log/bootstrap.out" 2>&1 || die "mariadb bootstrap failed: $D/log/bootstrap.out"
  fi
  rm -f "$D/mysql/sock"
  spawn mariadbd mariadbd "${opts[@]}" --skip-networking --skip-grant-tables --socket="$D/mysql/sock" \
    --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0
  wait_for 30 "mariadb socket" test -S "$D/mysql/sock"
}

idle() { [ "$(sinfo -h -N -r -t idle,mixed,allocated -o %N | sort -u | wc -l)" = "$NODES" ]; }

start() {
  local n
  for n in munged slurmctld slurmd sinfo $([ "$DBD" = 1 ] && echo slurmdbd mariadbd); do
    command -v "$n" >/dev/null || cannot "$n is not installed"
  done
  getent ahostsv4 "$(hostname -s)" | grep -q ^127\\. ||
    cannot "the hostname must resolve to loopback: echo 127.0.0.1 $(hostname -s) >>/etc/hosts"
  ((${#D} <= 70)) || die "$D: too long for unix sockets (108 characters)"
  [ -f "$D/settings" ] || configure
  . "$D/settings"
  spawn munged munged --foreground --key-file="$D/munge/key" --socket="$D/munge/sock" \
    --pid-file="$D/munge/pid" --log-file="$D/log/munged.log" --seed-file="$D/munge/seed"
  wait_for 10 "answer from munged" munge -n -S "$D/munge/sock"
  if [ "$DBD" = 1 ]; then
    start_mariadb
    # libmariadb takes the socket's path from MYSQL_UNIX_PORT; slurmdbd.conf is found beside slurm.conf
    MYSQL_UNIX_PORT=$D/mysql/sock spawn slurmdbd slurmdbd -D
    wait_for 30 "answer from slurmdbd" sacctmgr -n list cluster
    # before slurmctld's first start, or its first records are lost
    [ -n "$(sacctmgr -nP list cluster format=cluster)" ] || sacctmgr -i add cluster local >>"$D/log/sacctmgr.out"
  fi
  spawn slurmctld slurmctld -D
  for n in $(seq "$NODES"); do spawn "slurmd-$PREFIX$n" slurmd -D -N "$PREFIX$n"; done
  wait_for 30 "$NODES idle nodes" idle
  say "cluster up: $D"; sinfo >&2
  say "use it with:  export SLURM_CONF=$D/slurm.conf ; end it with:  $0 stop $D"
  echo "export SLURM_CONF=$D/slurm.conf SLURM_LOCAL_DIR=$D"
}

status() {
  local n rc=0
  for n in $(daemons); do
    if alive "$n"; then echo "$n: pid $(cut -d' ' -f1 "$D/run/$n.pid")"; else echo "$n: not running"; rc=1; fi
  done
  if alive slurmctld; then sinfo -h -N -o '%N: %T, %c cpus, %m MB, %G' | sort -u; fi
  return $rc
}

stop() {
  local n
  if alive slurmctld; then                # jobs first: slurmstepd and tasks outlive their slurmd
    squeue -h -o %A | sort -u | xargs -r scancel || true
    for n in $(seq 150); do [ -n "$(squeue -h)" ] || break; sleep 0.1; done
  fi
  for n in $(daemons | tr ' ' '\n' | tac); do end "$n"; done
  # what jobs left behind (only if slurmctld had died): slurmstepds and their tasks, known by their environment
  for n in /proc/[0-9]*; do
    grep -qzxF "SLURM_CONF=$SLURM_CONF" "$n/environ" 2>/dev/null || continue
    if grep -qzE '^SLURM_JOB_ID=' "$n/environ" || [ "$(cat "$n/comm")" = slurmstepd ]; then
      kill -KILL "${n#/proc/}" 2>/dev/null || true
    fi
  done
  say "stopped: $D (left in place: state and logs)"
}

guard() {                                 # whatever ends PID (a kill -9 too), the cluster does not outlive it
  local t; t=$(start_time "$PID") || t=gone
  while [ "$(start_time "$PID")" = "$t" ]; do sleep 1; done
  [ -f "$D/settings" ] || return 0
  . "$D/settings"; stop; rm -rf "$D"
}

cmd=${1:-}; D=${2:-${SLURM_LOCAL_DIR:-}}
[ -z "$D" ] || D=$(realpath -m "$D")
case $cmd in
  start) D=${D:-$(mktemp -d /tmp/slurm.XXXXXX)} ;;
  stop | status) [ -f "${D:-/nonexistent}/settings" ] || die "no cluster in '$D'"; . "$D/settings" ;;
  guard) PID=${3:?} ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
export SLURM_CONF=$D/slurm.conf
$cmd
