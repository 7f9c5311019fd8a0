#!/usr/bin/env bash
# Slurm and what accounting needs, from Debian's or Ubuntu's packages; quick where all is there already.
# Exit 3, after one line that says why, where they cannot be installed.
#
# No service is started: slurm_local.sh runs its own daemons, with its own configuration.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin DEBIAN_FRONTEND=noninteractive

missing() {
    local name
    for name in sbatch srun sacct squeue scontrol slurmctld slurmd munged slurmdbd mariadbd; do
        command -v "$name" >/dev/null || echo "$name"
    done
}
cannot() { echo "no Slurm: $*"; exit 3; }

exec 9>"${TMPDIR:-/tmp}/mim_bench_slurm_install.$(id -u)" # two test processes may both want it
flock 9
absent=$(missing | paste -sd ' ')
[ -n "$absent" ] || exit 0
command -v apt-get >/dev/null || cannot "$absent missing, and there is no apt-get to install them"
[ "$(id -u)" = 0 ] || cannot "$absent missing, and only root may install them"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt-get update -qq >"$log" 2>&1 || cannot "$absent missing, and apt-get update failed: $(tail -n 1 "$log")"
apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 \
    slurm-wlm munge slurmdbd mariadb-server-core >"$log" 2>&1 9>&- ||
    cannot "$absent missing, and apt-get install failed: $(tail -n 1 "$log")"
absent=$(missing | paste -sd ' ')
[ -z "$absent" ] || cannot "the packages were installed, but $absent is still missing"
