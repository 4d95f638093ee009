#!/bin/bash
# Slurm's Prolog, which runs as root on each node of a job. It starts a memleak for the job, and returns. See README.md.

# A prolog that fails drains the node. Nothing here is worth that.
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

# Makes the job's control group, under each name that Slurm may give it. Slurm would make it later, when the first step
# starts, and uses one that is there. The empty group below it keeps Slurm from removing the job's group between two
# steps. Otherwise Slurm would make a new group, which no memleak watches.
job_cgroups() {
	local name
	[[ -n $scope ]] || return
	# For the epilog.
	printf '%s\n' "${names[@]}" >"$job/groups" || return
	for name in "${names[@]}"; do
		# The mode is that of Slurm's groups: the job may read its limits there.
		(umask 022 && mkdir -p -- "$scope/$name/memleak") || return
	done
}

# Sets `labels`: the options that record a task's rank, step and job from its own environment. memleak takes four such
# options, those of MEMLEAK_OPTIONS included. If that is too few, the rank goes in: a control group does not tell it.
label_tasks() {
	local most=4 given=() before='' word name
	labels=()
	for word in "${MEMLEAK_OPTIONS[@]}"; do
		if [[ $before == --label-env ]]; then
			given+=("$word")
		elif [[ $word == --label-env=* ]]; then
			given+=("${word#*=}")
		fi
		before=$word
	done
	for name in SLURM_PROCID SLURM_STEP_ID SLURM_JOB_ID; do
		if ((${#given[@]} < most)) && [[ " ${given[*]} " != *" $name "* ]]; then
			given+=("$name")
			labels+=(--label-env "$name")
		fi
	done
}

# Becomes memleak, with nothing that ties it to the prolog. slurmd kills the prolog's process group when the prolog
# ends, and waits for its pipe.
become_memleak() {
	local fd self=$BASHPID
	for fd in "/proc/$self/fd"/*; do
		fd=${fd##*/}
		((fd <= 2)) || eval "exec $fd>&-"
	done
	# Processes in the job's control group end with the job.
	if [[ -n $inside ]]; then
		mkdir -p -- "$mount/memleak" && echo 0 >"$mount/memleak/cgroup.procs"
	fi
	# If memory runs out, the kernel should kill memleak and not the job.
	echo 500 >"/proc/$self/oom_score_adj"
	# With this, a write beyond the limit fails with an error and sends no signal.
	trap '' XFSZ
	ulimit -f $((MEMLEAK_MAX_MB * 1000000 / 1024))
	cd / || exit
	echo "$self $(started "$self")" >"$job/process" || exit
	exec setsid "$MEMLEAK" -a "$MEMLEAK_INTERVAL" -v --format "$MEMLEAK_FORMAT" -o "$job/report" "${whom[@]}" \
		"${labels[@]}" "${MEMLEAK_OPTIONS[@]}"
}

# Succeeds if memleak counts, as its -v says, or if it has ended.
settled() {
	[[ $(<"$job/log") == *"memleak: attached by"* ]] || ! started "$child"
}

mkdir -p -- "$MEMLEAK_SPOOL"
spool_is_safe || give_up "$MEMLEAK_SPOOL is not root's alone (0700)"
[[ -f $MEMLEAK && -x $MEMLEAK ]] || give_up "$MEMLEAK is no program"

if ! mkdir -- "$job"; then
	pid=$(memleak_pid) && give_up "it is already, by process $pid"
	# The node went down, and the job was requeued. Keep the part of the report that there is.
	mv -- "$job" "$job.$(date +%s)"
	mkdir -- "$job" || give_up "cannot make $job"
fi

find_scope
whom=(--uid "$SLURM_JOB_UID")
if job_cgroups; then
	for name in "${names[@]}"; do
		whom+=(--cgroup "$scope/$name")
	done
elif ((SLURM_JOB_UID == 0)); then
	remove_groups
	rm -rf -- "$job"
	give_up "it is root's, and has no control group: all of the node would be watched"
fi

label_tasks
become_memleak 2>"$job/log" &
child=$!
if ! await $((began + MEMLEAK_START_WAIT - $(now))) settled; then
	say "starts before memleak counts: that takes longer than $MEMLEAK_START_WAIT ms"
elif ! started "$child"; then
	wait "$child"
	code=$?
	last=$(tail -n 1 -- "$job/log")
	remove_groups
	rm -rf -- "$job"
	give_up "memleak ended with $code: $last"
fi
