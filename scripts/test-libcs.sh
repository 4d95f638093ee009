#!/usr/bin/env bash
# Runs tests on programs with other C libraries than this machine's, on the running kernel. Each library comes from
# another Debian, in a directory in which the fixtures are also compiled. Prints where each library's probes are, and a
# table.
#
#     scripts/test-libcs.sh [LIBC]…
#     scripts/test-libcs.sh --build     only compiles the tests, which needs no root
#
# tests/libcs.conf lists the libraries, the tests, and the tests that do not run. Exits with 0 if all tests passed,
# except those that do not run. Needs root, as the tests do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
source scripts/debian.sh
# shellcheck source=scripts/suites.sh
source scripts/suites.sh

conf=tests/libcs.conf
work=$PWD/target/libcs

die() {
	printf 'test-libcs: %s\n' "$*" >&2
	exit 1
}

# Builds the tests and memleak so that they run with the oldest library.
build() {
	program=$(build_tests scripts/sysroot.sh "$(uname -m)" cargo test --locked)
}

debian() { # debian SUITE: installs the Debian in a directory, if it is not there yet
	local root=$work/$1 packages
	packages=$(rows tool | paste -sd,)
	[[ $(cat "$root/tools" 2>/dev/null) != "$packages" ]] || return 0
	printf 'Installing Debian %s\n' "$1" >&2
	rm -rf "$root"
	debootstrap --variant=minbase --include="$packages" "$1" "$root" "$(debian_mirror)" >"$work/$1.log" ||
		die "debootstrap failed: see $work/$1.log"
	rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/usr/share/{doc,locale,man}
	printf '%s' "$packages" >"$root/tools"
}

# Runs in its own mount namespace, so that its mounts end with it. The project has the same path as here, but compiled
# files go to another directory.
# shellcheck disable=SC2016 # the inner bash expands it
inside='
	root=$1 project=$2 built=$3 compiled=$4
	shift 4
	mkdir -p "$root$project" "$built"
	# For unshare(1), / must be a mount.
	mount --bind "$root" "$root"
	mount --bind "$project" "$root$project"
	mount --bind "$built" "$root$compiled"
	for place in proc sys dev; do
		mount --rbind "/$place" "$root/$place"
	done
	mount -t tmpfs -o mode=1777 tmp "$root/tmp"
	exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C PLACEMENTS="${PLACEMENTS-}" \
		sh -c "cd $project && exec \"\$@\"" sh "$@"
'

check_reasons
if [[ ${1-} == --build ]]; then
	build
	exit
fi
((EUID == 0)) || die 'the tests load BPF programs and need root'
chosen=" $* "
# Where the tests put what they compile (CARGO_TARGET_TMPDIR).
compiled=$PWD/target/$(uname -m)-unknown-linux-gnu/tmp
mkdir -p "$work" "$compiled"
build
table=()
failed=false
while read -r libc debian; do
	[[ $chosen == '  ' || $chosen == *" $libc "* ]] || continue
	debian "$debian"
	began=$SECONDS
	results=()
	for suite in $(suites suite); do
		log=$work/$libc-$suite.log
		options=()
		while read -r test; do
			[[ $test == '*' ]] && continue 2
			options+=(--skip "$suite::$test")
		done < <(unrun "$libc" "$suite")
		if ! unshare --mount --propagation private bash -euc "$inside" inside "$work/$debian" "$PWD" \
			"$work/built-$debian" "$compiled" "$program" "$suite::" "${options[@]}" --show-output \
			</dev/null >"$log" 2>&1; then
			failed=true
			sed -n '/^failures:/,$p' "$log" >&2
		fi
		[[ $suite != placement ]] || sed -n '/^glibc/,/^$/p; /ns (/p; /only its functions/p' "$log"
		results+=("$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; .*/\1 \2/p' "$log")")
	done
	version=$(chroot "$work/$debian" "/lib/$(uname -m)-linux-gnu/libc.so.6" |
		sed -n '1s/.* version \(.*\)\.$/\1/p')
	passed=0 lost=0
	for result in "${results[@]}"; do
		read -r good bad <<<"${result:-0 1}"
		passed=$((passed + good)) lost=$((lost + bad))
	done
	table+=("$(printf '%-12s %-8s %-10s %6d %6d %7d' "$libc" "$version" "$debian" "$passed" "$lost" \
		$((SECONDS - began)))")
done < <(rows libc)

printf '\n%-12s %-8s %-10s %6s %6s %7s\n' libc version Debian passed failed seconds
printf '%s\n' "${table[@]}"
! $failed || die 'not all tests passed'
