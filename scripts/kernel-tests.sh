#!/bin/sh
# Runs a plan's suites on the running kernel. test-kernels.sh reads the output.
#
#     kernel-tests.sh MEMLEAK PLAN
#
# A line of the plan has a suite's name, its program, and the options for the program.
set -u
memleak=$1
plan=$2

echo "@kernel $(uname -r) $(uname -m)"
"$memleak" run -v -- true 2>&1 | sed 's/^memleak: attached by /@method /'
"$memleak" doctor --color never 2>&1
echo "@doctor $?"
while read -r suite program options; do
	echo "@suite $suite"
	# shellcheck disable=SC2086 # no option has a blank in it
	"$program" $options </dev/null 2>&1
	echo "@ended $suite $?"
done <"$plan"
