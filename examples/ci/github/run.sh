#!/usr/bin/env bash
# The step of action.yml. Runs the script MEMLEAK_RUN under memleak with MEMLEAK_OPTIONS, prints annotations, and appends
# a summary to the job's page. Exits as memleak does.
set -uo pipefail

files=$(mktemp -d "${RUNNER_TEMP:-/tmp}/memleak.XXXXXX")
# The options may have quotes, as in a shell.
declare -a options=()
mapfile -d '' -t options < <(xargs printf '%s\0' <<<"$MEMLEAK_OPTIONS")
memleak=${MEMLEAK-memleak}
root=()
user=()
if ((EUID != 0)); then
	root=(sudo -n --preserve-env)
	user=(--user sudo)
fi
"${root[@]}" "$memleak" run "${user[@]}" "${options[@]}" \
	-o github="$files/commands" -o markdown="$files/summary.md" \
	-o junit="$files/memleak.xml" -o sarif="$files/memleak.sarif" \
	-- bash -e -o pipefail -c "$MEMLEAK_RUN"
code=$?
# Without these files, memleak did not start. It has said why, unless it is missing.
if [[ -f $files/commands ]]; then
	cat "$files/commands"
else
	echo "::error title=memleak::memleak did not start: the log says why. Is it installed in a step before this one?"
fi
if [[ -f $files/summary.md ]]; then
	cat "$files/summary.md" >>"$GITHUB_STEP_SUMMARY"
fi
{
	echo "junit=$files/memleak.xml"
	echo "sarif=$files/memleak.sarif"
} >>"$GITHUB_OUTPUT"
exit "$code"
