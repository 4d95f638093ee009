#!/bin/bash
# Slurm's TaskProlog, which runs as the job's user before each task, the batch script included. Its output changes the
# task's environment. It makes `srun memleak-task.sh COMMAND` work anywhere in a job. See README.md.

# A failure here must not fail the task.
trap 'exit 0' EXIT
here=$(/usr/bin/dirname -- "$(/usr/bin/readlink -f -- "${BASH_SOURCE[0]}")")
echo "export PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}:$here"
# Reports go to the job's working directory, where its output is too. A step may have changed to another directory.
echo "export MEMLEAK_REPORTS=${MEMLEAK_REPORTS:-$PWD}"
