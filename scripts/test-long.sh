#!/usr/bin/env bash
# Runs the tests that take minutes (tests/it/long.rs), or those with a NAME in their names.
#
#     scripts/test-long.sh [--write] [NAME]…
#
# The test of endurance runs a release build, all others the debug build.
#
# --write: what each test has printed goes to tests/long.txt, with the date, the kernel and the commit. What the file
# has of other tests stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/long-record.sh
source scripts/long-record.sh

host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=scripts/as-root.sh"
write=
if [[ ${1-} == --write ]]; then
	write=yes
	shift
fi
printed=$(mktemp)
trap 'rm -f "$printed"' EXIT

cargo build --quiet --release --locked
export MEMLEAK_RELEASE=$PWD/target/release/memleak

# The tests run one after the other, because each test alone loads the machine. scripts/test-valgrind.sh runs those that
# compare with valgrind.
cargo test --quiet --locked --test it -- "$@" --ignored --skip valgrind:: --show-output --test-threads=1 2>&1 |
	tee "$printed"
[[ $write ]] || exit 0

awk -v where="$(where_and_when)" '
	/^---- .* stdout ----$/ { print "\n" $2 " (" where ")"; inside = 1; next }
	/^$/ { inside = 0 }
	inside { print "    " $0 }
' "$printed" | record
