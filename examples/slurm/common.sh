# The part that prolog.sh and epilog.sh share: the settings, the log, the job's names. They set their name (`script`)
# and their directory (`here`) before they source this file.
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

# slurmd reads a prolog's output until no process has the pipe open.
exec </dev/null >/dev/null 2>&1
umask 077

# Succeeds if only root can have put anything into the spool, such as a link.
spool_is_safe() { [[ $(stat -L -c '%u %a' -- "$MEMLEAK_SPOOL") == "0 700" ]]; }

# Writes to the system's log, and also into the spool, because not every node runs a syslog.
say() { # say LINE
	# LINE may have names of directories that the user has chosen.
	local line="job ${SLURM_JOB_ID-?}: ${1//[^[:print:]]/?}"
	if spool_is_safe; then
		printf '%(%FT%T%z)T %s: %s\n' -1 "$script" "$line" >>"$MEMLEAK_SPOOL/log"
	fi
	timeout 0.1 logger -t "memleak-$script" -- "$line"
}

# File names are made from these.
if [[ ! ${SLURM_JOB_ID-} =~ ^[0-9]+$ || ! ${SLURM_JOB_UID-} =~ ^[0-9]+$ ]]; then
	say "SLURM_JOB_ID and SLURM_JOB_UID are not numbers"
	exit
fi
job=$MEMLEAK_SPOOL/job.$SLURM_JOB_ID

# The names that Slurm may give the job's control group: by the job's number, or since 26.05 by its SLUID. A SLUID alone
# does not tell which: 25.11 has SLUIDs and names groups by numbers, as 26.05 does with CgroupJobIdPaths=yes. memleak knows
# a SLUID by the same digits.
names=("job_$SLURM_JOB_ID")
if [[ ${SLURM_JOB_SLUID-} =~ ^s[0-9A-HJKMNP-TV-Z]{13}$ ]]; then
	names+=("$SLURM_JOB_SLUID")
fi

# Prints when a process started, in clock ticks since boot. No two processes have both the pid and this time in common.
# Fails for a process that has ended.
started() { # started PID
	local stat
	stat=$(<"/proc/$1/stat") || return
	# The process's name, in parentheses, may contain any character. proc(5) counts fields from 1, and two are cut off.
	read -ra stat <<<"${stat##*) }"
	[[ ${stat[0]} != Z ]] && echo "${stat[22 - 3]}"
}

# Prints the pid of the job's memleak. Fails if that does not run.
memleak_pid() {
	local pid start
	read -r pid start <"$job/process" || return
	[[ -n $start && $(started "$pid") == "$start" ]] && echo "$pid"
}

# Prints milliseconds since boot. Unlike the time of day, nobody can set that clock.
now() {
	local uptime
	read -r uptime _ </proc/uptime
	uptime=${uptime/./}
	echo "${uptime}0"
}

began=$(now)

# Waits until COMMAND succeeds. Fails if COMMAND has not succeeded after MILLISECONDS.
await() { # await MILLISECONDS COMMAND…
	local end=$(($(now) + $1))
	shift
	until "$@"; do
		(($(now) < end)) || return
		sleep 0.02
	done
}

# Sets three variables. `mount` is where control groups of version 2 are mounted. `scope` is the group below it in which
# Slurm makes the groups of its jobs; it is empty if there is none. `inside` is set if we are in the job's own group. Then
# `names` has only the name of that group.
find_scope() {
	local own name candidate
	scope=
	inside=
	mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
	[[ -n $mount && $MEMLEAK_FILTER != uid ]] || return
	own=$(sed -n 's/^0:://p' /proc/self/cgroup)/
	# That is so with PrologFlags=RunInJob.
	for name in "${names[@]}"; do
		if [[ $own == */$name/* ]]; then
			inside=yes
			names=("$name")
			scope=$mount${own%%"/$name/"*}
			return
		fi
	done
	for candidate in "$MEMLEAK_SCOPE" "$mount/system.slice/${SLURMD_NODENAME-}_slurmstepd.scope" \
		"$mount/system.slice/slurmstepd.scope"; do
		if [[ -n $candidate && -d $candidate ]]; then
			scope=$candidate
			return
		fi
	done
}

# Removes the groups that the prolog made. It leaves groups with processes. Slurm itself does not remove the job's group,
# because it finds the group `memleak` in it.
remove_groups() {
	local name
	[[ -n $scope ]] || return
	for name in "${names[@]}"; do
		rmdir -- "$scope/$name/memleak" "$scope/$name"
	done
	rmdir -- "$mount/memleak"
}
