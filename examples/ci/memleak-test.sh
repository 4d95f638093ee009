#!/bin/sh
# Runs one test under memleak: memleak-test.sh COMMAND [ARGUMENT]…
#
# A test runner calls this in place of the test. It exits with the test's own code, or with 23 if the test passed and lost
# memory. Standard input and output are the test's own. What memleak has to say goes to standard error.
#
# MEMLEAK_OPTIONS has other options of `memleak run`, as '--fail-on-leak 1kB'. Words are separated by blanks.
# MEMLEAK is the program.
set -eu

memleak=${MEMLEAK-memleak}
options=${MEMLEAK_OPTIONS---quiet --fail-on-lost 0}
if [ "$(id -u)" = 0 ]; then
	# shellcheck disable=SC2086 # these are words
	exec "$memleak" run $options -- "$@"
fi
# memleak needs root, and the test does not: it gets the rights, and the environment, of whoever called sudo.
# shellcheck disable=SC2086 # these are words
exec sudo -n --preserve-env "$memleak" run --user sudo $options -- "$@"
