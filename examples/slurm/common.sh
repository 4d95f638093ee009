# What prolog.sh and epilog.sh share: the settings, the log, the job's names. They say who they are (`script`) and where
# they lie (`here`).
# shellcheck shell=bash disable=SC2034,SC2154

MEMLEAK=/usr/local/bin/memleak
MEMLEAK_SPOOL=/var/spool/memleak
MEMLEAK_INTERVAL=60
MEMLEAK_FORMAT=json
MEMLEAK_OPTIONS=()
MEMLEAK_FILTER=auto
MEMLEAK_SCOPE=
MEMLEAK_START_WAIT=800
MEMLEAK_STOP_WAIT=10000
MEMLEAK_COPY_WAIT=20000
MEMLEAK_MAX_MB=100
if [[ -r $here/memleak.conf ]]; then
	# shellcheck source=/dev/null
	. "$here/memleak.conf"
fi

# slurmd reads what a prolog prints until nobody has the pipe open.
exec </dev/null >/dev/null 2>&1
umask 077

# Whether nobody but root can have put anything into the spool, such as a link.
spool_is_safe() { [[ $(stat -L -c '%u %a' -- "$MEMLEAK_SPOOL") == "0 700" ]]; }

# To the system's log, and into the spool as well: not every node runs a syslog.
say() { # say LINE
	# The user has chosen the names of directories in it.
	local line="job ${SLURM_JOB_ID-?}: ${1//[^[:print:]]/?}"
	if spool_is_safe; then
		printf '%(%FT%T%z)T %s: %s\n' -1 "$script" "$line" >>"$MEMLEAK_SPOOL/log"
	fi
	timeout 0.1 logger -t "memleak-$script" -- "$line"
}

# Names of files are made of it.
if [[ ! ${SLURM_JOB_ID-} =~ ^[0-9]+$ || ! ${SLURM_JOB_UID-} =~ ^[0-9]+$ ]]; then
	say "SLURM_JOB_ID and SLURM_JOB_UID are no numbers"
	exit
fi
job=$MEMLEAK_SPOOL/job.$SLURM_JOB_ID

# When a process started, in clock ticks since boot: no two processes have that and the pid in common. Fails for one
# that has ended.
started() { # started PID
	local stat
	stat=$(<"/proc/$1/stat") || return
	# The name, in parentheses, may hold anything; proc(5) counts from 1, and two fields are cut off.
	read -ra stat <<<"${stat##*) }"
	[[ ${stat[0]} != Z ]] && echo "${stat[22 - 3]}"
}

# The pid of the job's memleak, while that runs.
memleak_pid() {
	local pid start
	read -r pid start <"$job/process" || return
	[[ -n $start && $(started "$pid") == "$start" ]] && echo "$pid"
}

# Milliseconds since boot, which nobody sets as the time of day is set.
now() {
	local uptime
	read -r uptime _ </proc/uptime
	uptime=${uptime/./}
	echo "${uptime}0"
}

began=$(now)

# Waits until a command succeeds; fails if it does not for so long.
await() { # await MILLISECONDS COMMAND…
	local end=$(($(now) + $1))
	shift
	until "$@"; do
		(($(now) < end)) || return
		sleep 0.02
	done
}

# Where Slurm makes the control groups of its jobs (`scope`, empty if nowhere in version 2), below where these are
# mounted (`mount`), and whether we are in the job's own (`inside`).
find_scope() {
	local own candidate
	scope=
	inside=
	mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
	[[ -n $mount && $MEMLEAK_FILTER != uid ]] || return
	own=$(sed -n 's/^0:://p' /proc/self/cgroup)/
	# With PrologFlags=RunInJob.
	if [[ $own == */job_$SLURM_JOB_ID/* ]]; then
		inside=yes
		scope=$mount${own%%"/job_$SLURM_JOB_ID/"*}
		return
	fi
	for candidate in "$MEMLEAK_SCOPE" "$mount/system.slice/${SLURMD_NODENAME-}_slurmstepd.scope" \
		"$mount/system.slice/slurmstepd.scope"; do
		if [[ -n $candidate && -d $candidate ]]; then
			scope=$candidate
			return
		fi
	done
}
