#!/usr/bin/env bash
# Runs tests on other kernels than this machine's, and prints one table. Boots the kernels of Debian's packages under
# qemu, from an initramfs with the binary, the tests and the tools that the tests call.
#
#     scripts/test-kernels.sh [KERNEL]…
#
# tests/kernels.conf lists the kernels, the tests, and the tests that do not run. Exits with 0 under these conditions:
# - All tests ran on every kernel and passed, except those that do not run there.
# - memleak attached by the expected method.
# - No kernel reported a fault.
# Needs root, as the tests do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
source scripts/debian.sh
# shellcheck source=scripts/suites.sh
source scripts/suites.sh

conf=tests/kernels.conf
work=$PWD/target/kernels
# The most seconds that one kernel may take.
limit=${LIMIT:-7200}

die() {
	printf 'test-kernels: %s\n' "$*" >&2
	exit 1
}
say() { printf '%s\n' "$*" >&2; }

# A test's program knows the project's directory, and the emulated machine has its own /tmp there.
[[ $PWD/ != /tmp/* ]] || die "the tests cannot run from $PWD: put the project elsewhere than below /tmp"

# ---- the tested programs -----------------------------------------------------------------------------

native=$(uname -m)

# The binary and the tests' program of each machine, and the number of tests in each suite.
declare -A memleak_of=() program_of=() tests_in=()
build() { # build MACHINE
	local -a command=(cargo)
	local machine=$1 output=$PWD/target/emulated
	if [[ $machine != "$native" ]]; then
		command=(scripts/sysroot.sh "$machine" cargo)
		output=$PWD/target/$machine-unknown-linux-gnu/emulated
	fi
	program_of[$machine]=$(build_tests "${command[@]}" test --locked --profile emulated)
	memleak_of[$machine]=$output/memleak
}

# Compiles for another machine the programs that the tests compiled on this machine. Each program has its command beside
# it (tests/it/common/fixtures.rs). If a program does not compile here, the test that needs it compiles it there.
cross_compile() { # cross_compile MACHINE
	local built=$PWD/target/$1-unknown-linux-gnu/tmp/built record program
	local -a words
	mkdir -p "$built"
	for record in "$PWD"/target/tmp/built/*.command; do
		[[ -e $record ]] || die 'no test has compiled its programs yet: run the tests on host first'
		program=$built/$(basename "$record" .command)
		[[ $program -nt $record ]] && continue
		cp "$record" "$built/"
		mapfile -t words <"$record"
		case ${words[0]} in
		cc) words[0]=$1-linux-gnu-gcc ;;
		c++) words[0]=$1-linux-gnu-g++ ;;
		*) continue ;;
		esac
		"${words[@]/#@OUTPUT@/"$program"}" 2>/dev/null || say "its test compiles $program"
	done
}

plan() { # plan KERNEL MACHINE: prints a line for each suite
	local suite test options
	for suite in $(suites suite); do
		# Tests that pass also print output: where the probes of a C library are, and their cost.
		options="$suite:: --show-output"
		while read -r test; do
			[[ $test == '*' ]] && continue 2
			options+=" --skip $suite::$test"
		done < <(unrun "$1" "$suite")
		printf '%s %s %s\n' "$suite" "${program_of[$2]}" "$options"
	done
}

# ---- kernels from Debian's archive -------------------------------------------------------------------

# Debian's name of a machine.
debian_of() { # debian_of MACHINE
	case $1 in
	x86_64) printf amd64 ;;
	aarch64) printf arm64 ;;
	*) die "$conf: '$1' is neither x86_64 nor aarch64" ;;
	esac
}

# Downloads the kernel of a package, if it is not there yet. Prints the kernel's path.
fetch_kernel() { # fetch_kernel SUITE PACKAGE MACHINE
	local suite=$1 arch package image
	arch=$(debian_of "$3")
	package=$(apt_of "$suite" "$arch" apt-cache pkgnames linux- | grep -xE -- "$2" | sort -V | tail -n 1)
	[[ -n $package ]] || die "no package in Debian's $suite matches $2"
	image=$work/images/$package
	if [[ ! -e $image ]]; then
		say "Fetching $package"
		rm -rf "$work/debs"
		mkdir -p "$work/images" "$work/debs"
		(cd "$work/debs" && apt_of "$suite" "$arch" apt-get download "$package" >&2)
		# In sid the kernel is in the directory of its modules.
		dpkg-deb --fsys-tarfile "$work"/debs/"$package"_*.deb |
			tar -x --to-stdout --wildcards --no-anchored 'vmlinuz*' >"$image.part"
		rm -r "$work/debs"
		mv "$image.part" "$image"
	fi
	printf '%s' "$image"
}

# ---- the initramfs -----------------------------------------------------------------------------------

# Archives the files named on standard input, with their directories. / has links such as /lib → usr/lib. So the archive
# has in /usr/lib the files that packages have in /lib.
archive() {
	sed -E 's#/+#/#g; s#^/(bin|sbin|lib|lib32|lib64|libx32)/#/usr/\1/#' |
		awk '{ path = ""; count = split($0, names, "/")
			for (i = 2; i <= count; i++) { path = path "/" names[i]; if (!seen[path]++) print substr(path, 2) } }' |
		(cd / && cpio --quiet -o -H newc)
}

# Prints the paths of programs and of the libraries that they need: the links and their targets.
with_libraries() {
	local file libraries
	libraries=$(for file in "$@"; do
		ldd "$file" 2>/dev/null || true
	done | grep -oE '/[^ :]+' | sort -u)
	printf '%s\n' "$@" "$libraries"
	xargs realpath <<<"$libraries"
}

# Prints the path of an archive with the tools and all that they depend on. Makes the archive again only if other
# versions were installed.
tools_archive() {
	local -a packages
	[[ -L /bin && -L /lib ]] || die 'a Debian with /bin and /lib in /usr is needed here'
	mapfile -t packages < <(rows tool | xargs apt-cache depends --recurse --installed --no-recommends \
		--no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances |
		grep -E '^[a-z0-9]' | sort -u)
	local versions archive
	versions=$(dpkg-query -W "${packages[@]}" 2>/dev/null | cat - "${BASH_SOURCE[0]}" | sha256sum)
	archive=$work/tools-${versions:0:16}.cpio
	if [[ ! -e $archive ]]; then
		say 'Packing the tools that the tests call'
		rm -f "$work"/tools-*
		{
			dpkg-query -L "${packages[@]}" 2>/dev/null | grep '^/' |
				grep -vE '^/usr/share/(doc|man|info|locale|i18n|lintian|bug|perl/.*/pod|zoneinfo)/' |
				while read -r file; do
					[[ -e $file && ! -d $file ]] && printf '%s\n' "$file"
				done
			find /usr/bin -lname '/etc/alternatives/*'
			find /etc/alternatives /etc/ld.so* -type f -o -type l
			printf '%s\n' /bin /sbin /lib /lib64 /dev /proc /sys /tmp /etc/{passwd,group,nsswitch.conf,hosts}
		} | archive >"$archive.part"
		mv "$archive.part" "$archive"
	fi
	printf '%s' "$archive"
}

# The same for another machine, from the release of Debian that this machine has. So programs that were compiled here
# find their C library there. The scripts of the packages do not run.
foreign_tools_archive() { # foreign_tools_archive MACHINE
	local arch suite versions archive root=$work/tools-$1
	local -a wanted packages
	arch=$(debian_of "$1")
	suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	mapfile -t wanted < <(rows tool)
	mapfile -t packages < <(apt_of "$suite" "$arch" apt-get install --simulate --no-install-recommends "${wanted[@]}" |
		sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1=\2/p')
	((${#packages[@]} > 0)) || die "apt does not list the packages that the tools for $1 need"
	versions=$(printf '%s\n' "${packages[@]}" | cat - "${BASH_SOURCE[0]}" | sha256sum)
	archive=$root-${versions:0:16}.cpio
	if [[ ! -e $archive ]]; then
		say "Fetching the tools that the tests call, for $1"
		rm -rf "$root" "$root"-*
		mkdir -p "$root"/{debs,files/usr/{bin,sbin,lib},files/{dev,proc,sys,tmp,run,etc}}
		local name
		for name in bin sbin lib; do
			ln -s "usr/$name" "$root/files/$name"
		done
		(cd "$root/debs" && apt_of "$suite" "$arch" apt-get download "${packages[@]}" >&2)
		for name in "$root"/debs/*.deb; do
			dpkg-deb --fsys-tarfile "$name" | tar -x -C "$root/files" --keep-directory-symlink \
				--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
				--exclude='./usr/share/zoneinfo/*' --exclude='./usr/lib/*/gconv/*' --exclude='*/lto1' \
				--exclude='*-lto-dump-*' --exclude='*-ld.gold'
		done
		# update-alternatives would make these links.
		ln -s gcc "$root/files/usr/bin/cc"
		[[ -e $root/files/usr/bin/awk ]] || ln -s mawk "$root/files/usr/bin/awk"
		cp /etc/{passwd,group,nsswitch.conf,hosts} "$root/files/etc/"
		(cd "$root/files" && find . | cpio --quiet -o -H newc) >"$archive.part"
		mv "$archive.part" "$archive"
		rm -r "$root"
	fi
	printf '%s' "$archive"
}

# Archives the binary, the tests and the programs that the tests compiled, with the same paths as here.
tests_archive() { # tests_archive MACHINE
	local machine=$1 built=$PWD/target/tmp/built
	local -a programs=("${memleak_of[$1]}" "${program_of[$1]}")
	[[ $machine == "$native" ]] || built=$PWD/target/$machine-unknown-linux-gnu/tmp/built
	mapfile -t -O "${#programs[@]}" programs < <(find "$built" -type f)
	{
		# The archive of another machine's tools contains its libraries.
		if [[ $machine == "$native" ]]; then
			with_libraries "${programs[@]}"
		else
			printf '%s\n' "${programs[@]}"
		fi
		find "$PWD/examples" "$PWD/fixtures" "$PWD/tests" "$PWD/scripts" -type f
	} | archive
}

# ---- runs --------------------------------------------------------------------------------------------

accelerator() { # accelerator MACHINE
	# /dev/kvm can exist on a processor without virtualization.
	if [[ $1 == "$native" && -w /dev/kvm ]] && { [[ $1 == aarch64 ]] || grep -qwE 'vmx|svm' /proc/cpuinfo; }; then
		printf kvm
	else
		# Emulates the processors in one thread. With a thread each, the processors of qemu 7.2 sometimes execute a
		# breakpoint that the kernel has removed from its own code (Oops: int3). Little here runs in parallel.
		printf 'tcg,thread=single'
	fi
}

boot() { # boot KERNEL MACHINE IMAGE CPU
	local dir=$work/runs/$1 tools console port
	local root=$dir/root
	local -a machine
	rm -rf "$root"
	mkdir -p "$root"
	cp scripts/kernel-init.sh "$root/init"
	case $2 in
	x86_64)
		machine=(-M pc -serial file:"$dir/console" -serial file:"$dir/tests")
		console=ttyS0 port=ttyS1
		;;
	aarch64)
		# This machine has only one built-in serial line. The isolation of the kernel's page tables (kpti) makes an
		# emulator very slow.
		machine=(-M virt -serial file:"$dir/console"
			-chardev "file,id=tests,path=$dir/tests" -device "pci-serial,chardev=tests")
		console='ttyAMA0 nokaslr kpti=off' port=ttyS0
		;;
	esac
	printf 'ROOT=%q\nMEMLEAK=%q\nPORT=%q\n' "$PWD" "${memleak_of[$2]}" "/dev/$port" >"$root/kernel-test.env"
	plan "$1" "$2" >"$root/kernel-test.plan"
	if [[ $2 == "$native" ]]; then
		tools=$(tools_archive)
	else
		tools=$(foreign_tools_archive "$2")
		cross_compile "$2"
	fi
	{
		cat "$tools"
		tests_archive "$2"
		(cd "$root" && find . -type f | cpio --quiet -o -H newc)
	} >"$dir/initramfs"
	# On a busy host the guest's kernel would report hangs, which these tests do not check.
	timeout "$limit" "qemu-system-$2" "${machine[@]}" -accel "$(accelerator "$2")" -cpu "$4" -smp 2 -m 4G \
		-display none -no-reboot -nic none -kernel "$3" -initrd "$dir/initramfs" \
		-append "console=$console panic=-1 nowatchdog rcupdate.rcu_cpu_stall_suppress=1" </dev/null ||
		say "qemu ended with $?"
	rm -r "$dir/initramfs" "$root"
}

on_host() {
	local dir=$work/runs/host
	plan host "$native" >"$dir/plan"
	# This also compiles the fixtures for the other kernels.
	sh scripts/kernel-tests.sh "${memleak_of[$native]}" "$dir/plan" </dev/null >"$dir/tests" 2>&1
	printf '@done\n' >>"$dir/tests"
	: >"$dir/console"
}

table=()
failures=()
fail() { failures+=("$1: $2"); }

judge() { # judge KERNEL METHOD SECONDS
	local kernel=$1 dir=$work/runs/$1 passed=0 failed=0 unrun=0 word suite
	local log release method
	log=$(tr -d '\r' <"$dir/tests")
	release=$(sed -n 's/^@kernel //p' <<<"$log")
	method=$(sed -n 's/^@method //p' <<<"$log")
	method=${method:-none}
	for suite in $(suites suite); do
		local result counts=(0 0 0) excepted left_out
		excepted=$(unrun "$kernel" "$suite")
		if [[ $'\n'$excepted$'\n' == *$'\n*\n'* ]]; then
			unrun=$((unrun + tests_in[$suite]))
			continue
		fi
		result=$(sed -n "/^@suite $suite\$/,/^@ended $suite /s/^test result: //p" <<<"$log")
		if [[ $result =~ ([0-9]+)\ passed\;\ ([0-9]+)\ failed\;\ ([0-9]+)\ ignored ]]; then
			counts=("${BASH_REMATCH[@]:1:3}")
			left_out=$(grep -c . <<<"$excepted" || true)
			passed=$((passed + counts[0]))
			failed=$((failed + counts[1]))
			unrun=$((unrun + counts[2] + left_out))
			((counts[2] == 0)) || fail "$kernel" "$suite ignores ${counts[2]} tests"
			((counts[0] + counts[1] + counts[2] + left_out == tests_in[$suite])) ||
				fail "$kernel" "$suite has ${tests_in[$suite]} tests and $conf leaves out $left_out, but not all others ran"
		else
			unrun=$((unrun + tests_in[$suite]))
			fail "$kernel" "$suite did not finish"
		fi
	done
	while read -r word; do
		fail "$kernel" "$word"
	done < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' <<<"$log")
	grep -qx '@done' <<<"$log" || fail "$kernel" "did not finish within $limit seconds, or crashed"
	grep -qx '@doctor 0' <<<"$log" || fail "$kernel" 'memleak doctor says that memleak does not work there'
	[[ $2 == any || ${method%% *} == "$2" ]] || fail "$kernel" "attached by '$method', not by $2"
	while read -r word; do
		fail "$kernel" "the kernel reports: $word"
	done < <(tr -d '\r' <"$dir/console" | grep -E 'WARNING: |BUG: |Oops|Kernel panic' | head -n 5)
	table+=("$(printf '%-28s %-8s %-18s %6d %6d %6d %7d' "${release% *}" "${release##* }" "$method" \
		"$passed" "$failed" "$unrun" "$3")")
	say "${table[-1]}"
}

# ----------------------------------------------------------------------------------------------------

check_reasons
((EUID == 0)) || die 'the tests load BPF programs and need root'
chosen=" $* "
build "$native"
names=$("${program_of[$native]}" --list)
for suite in $(suites suite); do
	tests_in[$suite]=$(grep -c "^$suite::.*: test\$" <<<"$names") || die "the suite $suite has no tests"
done
while read -r kernel machine method cpu suite package; do
	[[ $chosen == '  ' || $chosen == *" $kernel "* ]] || continue
	rm -rf "$work/runs/$kernel"
	mkdir -p "$work/runs/$kernel"
	if [[ $kernel == host ]]; then
		began=$SECONDS
		on_host
	else
		[[ -n ${memleak_of[$machine]-} ]] || build "$machine"
		image=$(fetch_kernel "$suite" "$package" "$machine")
		began=$SECONDS
		boot "$kernel" "$machine" "$image" "$cpu"
	fi
	judge "$kernel" "$method" $((SECONDS - began))
done < <(rows kernel)

printf '\n%-28s %-8s %-18s %6s %6s %6s %7s\n' kernel machine 'attached by' passed failed unrun seconds
printf '%s\n' "${table[@]}"
if ((${#failures[@]} > 0)); then
	printf '\n'
	printf 'FAILED: %s\n' "${failures[@]}"
	exit 1
fi
