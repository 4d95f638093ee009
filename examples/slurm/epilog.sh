#!/bin/bash
# Slurm's Epilog, which runs as root on each node of a job. It ends the memleak that prolog.sh started, and puts its
# report beside the job's output. See README.md.

# An epilog that fails drains the node. Nothing here is worth that.
trap 'exit 0' EXIT TERM
# Slurm gives it no search path.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
script=epilog
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# shellcheck source=examples/slurm/common.sh
. "$here/common.sh" || exit

ended() { ! memleak_pid; }

stop_memleak() {
	local pid
	if ! pid=$(memleak_pid); then
		say "memleak ended before the job did: $(tail -n 1 -- "$job/log")"
		return
	fi
	kill -TERM "$pid"
	if ! await "$MEMLEAK_STOP_WAIT" ended; then
		say "memleak (process $pid) does not end: killed"
		kill -KILL "$pid"
		# After that, no process writes the report.
		await 1000 ended
	fi
}

# Prints the directory of the job's output.
beside_output() {
	local out=${SLURM_JOB_STDOUT-} work=${SLURM_JOB_WORK_DIR-}
	if [[ $out != /* ]]; then
		out=$work/$out
	fi
	out=${out%/*}
	# Slurm does not replace the placeholders of file names here.
	out=${out//%j/$SLURM_JOB_ID}
	out=${out//%u/${SLURM_JOB_USER-}}
	case $out in
	'' | /dev | *%*) out=$work ;;
	esac
	echo "$out"
}

# Copies standard input to a new file `$2$3` in the directory `$1`. It runs as the job's user. It neither follows nor
# overwrites what is there.
# shellcheck disable=SC2016
copy='
	cd -- "$1" || exit
	umask 077
	set -C
	for number in "" .1 .2 .3 .4 .5 .6 .7 .8 .9; do
		report=$2$number$3
		if [ -e "$report" ] || [ -L "$report" ]; then continue; fi
		true >"$report" || exit
		if cat >>"$report"; then exit 0; fi
		rm -f -- "$report"
		exit 1
	done
	echo "$2$3 and nine more are there already"
	exit 1'

deliver() { # deliver DIRECTORY NAME SUFFIX
	local gid copier
	gid=${SLURM_JOB_GID:-$(id -g -- "$SLURM_JOB_UID")}
	# The copier has a session of its own, so that it can be killed with all that it started.
	setsid setpriv --reuid "$SLURM_JOB_UID" --regid "$gid" --init-groups --inh-caps=-all -- \
		env -i PATH=/usr/bin:/bin LC_ALL=C sh -c "$copy" sh "$@" <"$job/report" >"$job/copy" 2>&1 &
	copier=$!
	# If the file system does not answer, even SIGKILL may not end the copier. So we do not wait for it after that.
	if ! await "$MEMLEAK_COPY_WAIT" has_ended "$copier"; then
		kill -KILL -- "-$copier"
		echo "the copy takes longer than $MEMLEAK_COPY_WAIT ms" >"$job/copy"
		return 1
	fi
	wait "$copier"
}

has_ended() { ! started "$1"; }

spool_is_safe && [[ -d $job ]] || exit
stop_memleak
find_scope
if [[ -f $job/groups ]]; then
	mapfile -t names <"$job/groups"
fi
remove_groups
if [[ ! -s $job/report ]]; then
	say "there is no report: $(tail -n 1 -- "$job/log")"
	rm -rf -- "$job"
	exit
fi
directory=$(beside_output)
if [[ -z $directory ]]; then
	say "the report stays in $job, as Slurm does not say where the job's output is"
elif deliver "$directory" "memleak-$SLURM_JOB_ID.${SLURMD_NODENAME:-$(hostname -s)}" ".$MEMLEAK_FORMAT"; then
	rm -rf -- "$job"
else
	say "the report stays in $job, as it cannot be put into $directory: $(tail -n 1 -- "$job/copy")"
fi
