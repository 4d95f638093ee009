# shellcheck shell=bash
# For scripts that source it, from the project's directory: keeps in tests/long.txt what the tests that take minutes have
# printed. The file has a paragraph for each test, sorted.

# Where and when the tests run, for the first line of a paragraph.
where_and_when() {
	printf '%s, Linux %s, %s CPUs, commit %s' "$(date -u +%F)" "$(uname -r)" "$(nproc)" "$(git rev-parse --short HEAD)"
}

# Puts paragraphs in, in place of those of the same tests. A test's name is the first word of its paragraph.
record() { # record <PARAGRAPHS
	local all
	touch tests/long.txt
	# Of two with the same name the first stays.
	all=$(cat - <(echo) tests/long.txt |
		awk 'BEGIN { RS = "" } !seen[$1]++ { gsub(/\n/, "\1"); print }' |
		LC_ALL=C sort |
		tr '\1' '\n' |
		sed '1!s/^[^ ]/\n&/')
	printf '%s\n' "$all" >tests/long.txt
}
