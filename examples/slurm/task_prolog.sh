#!/bin/bash
# Slurm's TaskProlog, as the job's user before each task, the batch script among them: what it prints changes the
# task's environment. Makes `srun memleak-task.sh COMMAND` work anywhere in a job. See README.md.

# Not worth a task.
trap 'exit 0' EXIT
here=$(/usr/bin/dirname -- "$(/usr/bin/readlink -f -- "${BASH_SOURCE[0]}")")
echo "export PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}:$here"
# The job's working directory, where it puts its output, too; a step may have changed to another one.
echo "export MEMLEAK_REPORTS=${MEMLEAK_REPORTS:-$PWD}"
