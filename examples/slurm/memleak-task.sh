#!/bin/bash
# srun memleak-task.sh COMMAND [ARGS]… runs each task under a memleak of its own, with a report of its own.
# See README.md.
#
# MEMLEAK: the program
# MEMLEAK_REPORTS: the directory of the reports
# MEMLEAK_TASK_OPTIONS: more options of `memleak run`, separated by spaces

memleak=${MEMLEAK:-/usr/local/bin/memleak}
reports=${MEMLEAK_REPORTS:-.}
read -ra options <<<"${MEMLEAK_TASK_OPTIONS-}"
if [[ ! -f $memleak || ! -x $memleak ]]; then
	echo "memleak-task.sh: $memleak is no program; the task runs without it" >&2
	exec "$@"
fi
# Tasks of a job's later steps have the same numbers, so the step's number is added.
step=
if [[ ${SLURM_STEP_ID:-0} != 0 ]]; then
	step='.%q{SLURM_STEP_ID}'
fi
exec "$memleak" run --format json "${options[@]}" \
	-o "${reports//%/%%}/%q{SLURM_JOB_ID}$step.%q{SLURM_PROCID}.json" -- "$@"
