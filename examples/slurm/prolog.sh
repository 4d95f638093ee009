#!/bin/bash
# Slurm's Prolog, as root on each node of a job: leaves a memleak on the job, and returns. See README.md.

# A prolog that fails drains the node, which nothing here is worth.
trap 'exit 0' EXIT TERM
# Slurm gives it no search path.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
script=prolog
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# shellcheck source=examples/slurm/common.sh
. "$here/common.sh" || exit

give_up() { # give_up WHY
	say "is not watched: $1"
	exit
}

# The job's control group. Slurm makes it when the first step starts, after this, and takes one that is there. The one
# below keeps it from being removed between two steps: another one would come, which nobody watches.
job_cgroup() {
	[[ -n $scope ]] || return
	# As Slurm makes it: the job may read its limits there.
	(umask 022 && mkdir -p -- "$scope/job_$SLURM_JOB_ID/memleak")
}

# Becomes memleak, of which nothing ties it to us: slurmd kills our process group when we end, and waits for our pipe.
become_memleak() {
	local fd self=$BASHPID
	for fd in "/proc/$self/fd"/*; do
		fd=${fd##*/}
		((fd <= 2)) || eval "exec $fd>&-"
	done
	# What is in the job's control group ends with the job.
	if [[ -n $inside ]]; then
		mkdir -p -- "$mount/memleak" && echo 0 >"$mount/memleak/cgroup.procs"
	fi
	# If memory runs out, rather this than the job.
	echo 500 >"/proc/$self/oom_score_adj"
	# Writing more is an error then, and no signal.
	trap '' XFSZ
	ulimit -f $((MEMLEAK_MAX_MB * 1000000 / 1024))
	cd / || exit
	echo "$self $(started "$self")" >"$job/process" || exit
	exec setsid "$MEMLEAK" -a "$MEMLEAK_INTERVAL" -v --format "$MEMLEAK_FORMAT" -o "$job/report" "${whom[@]}" \
		"${MEMLEAK_OPTIONS[@]}"
}

# memleak says with -v when it counts.
settled() {
	[[ $(<"$job/log") == *"memleak: attached by"* ]] || ! started "$child"
}

mkdir -p -- "$MEMLEAK_SPOOL"
spool_is_safe || give_up "$MEMLEAK_SPOOL is not root's alone (0700)"
[[ -f $MEMLEAK && -x $MEMLEAK ]] || give_up "$MEMLEAK is no program"

if ! mkdir -- "$job"; then
	pid=$(memleak_pid) && give_up "it is already, by process $pid"
	# The node went down, and the job was requeued: what there is of a report stays.
	mv -- "$job" "$job.$(date +%s)"
	mkdir -- "$job" || give_up "cannot make $job"
fi

find_scope
whom=(--uid "$SLURM_JOB_UID")
if job_cgroup; then
	whom+=(--cgroup "$scope/job_$SLURM_JOB_ID")
elif ((SLURM_JOB_UID == 0)); then
	rm -rf -- "$job"
	give_up "it is root's, and has no control group: all of the node would be watched"
fi

become_memleak 2>"$job/log" &
child=$!
if ! await $((began + MEMLEAK_START_WAIT - $(now))) settled; then
	say "starts before memleak counts: that takes longer than $MEMLEAK_START_WAIT ms"
elif ! started "$child"; then
	wait "$child"
	code=$?
	last=$(tail -n 1 -- "$job/log")
	rm -rf -- "$job"
	give_up "memleak ended with $code: $last"
fi
