#!/usr/bin/env bash
# Runs the tests that take minutes (tests/it/long.rs), or those with a NAME in their names.
#
#     scripts/test-long.sh [--write] [NAME]…
#
# --write: what each test has printed goes to tests/long.txt, with the date, the kernel and the commit. What the file
# has of other tests stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=scripts/as-root.sh"
write=
if [[ ${1-} == --write ]]; then
	write=yes
	shift
fi
printed=$(mktemp)
trap 'rm -f "$printed" "$printed".*' EXIT

# The tests run one after the other, because each test alone loads the machine. scripts/test-valgrind.sh runs those that
# compare with valgrind.
cargo test --quiet --locked --test it -- "$@" --ignored --skip valgrind:: --show-output --test-threads=1 2>&1 |
	tee "$printed"
[[ $write ]] || exit 0

where="$(date -u +%F), Linux $(uname -r), $(nproc) CPUs, commit $(git rev-parse --short HEAD)"
awk -v where="$where" '
	/^---- .* stdout ----$/ { print "\n" $2 " (" where ")"; inside = 1; next }
	/^$/ { inside = 0 }
	inside { print "    " $0 }
' "$printed" >"$printed.new"
touch tests/long.txt
# A paragraph for each test, sorted. Of two with the same name the first stays.
cat "$printed.new" <(echo) tests/long.txt |
	awk 'BEGIN { RS = "" } !seen[$1]++ { gsub(/\n/, "\1"); print }' |
	LC_ALL=C sort |
	tr '\1' '\n' |
	sed '1!s/^[^ ]/\n&/' >"$printed.all"
cat "$printed.all" >tests/long.txt
