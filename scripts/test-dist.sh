#!/usr/bin/env bash
# Tests the release in target/dist: its content, that its programs run on Debian 11, and that its packages leave nothing
# behind. It installs each package in a root of its own, made by debootstrap, and runs memleak there on this machine's
# kernel: on the command line, as on a node of Kubernetes, and in a job of GitHub's and GitLab's. It needs root, and a
# network for the packages of Debian 11. The files for the other architecture are inspected, and the program is started
# under qemu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
source scripts/debian.sh

out=target/dist
work=$PWD/target/test-dist
root=$work/root
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
native=$(uname -m)

die() {
	printf 'test-dist: %s\n' "$*" >&2
	exit 1
}
passed() { printf 'ok  %s\n' "$*"; }

same() { # same WHAT EXPECTED FOUND
	[[ $2 == "$3" ]] || die "$1: $(diff <(echo "$2") <(echo "$3") || true)"
}

refused() { # refused WHY COMMAND…: checks that COMMAND fails with the message WHY
	local why=$1 said
	shift
	! said=$("$@" 2>&1) || die "not refused: $*"
	[[ $said == *"$why"* ]] || die "refused for another reason than '$why': $said"
}

debian_name() {
	case $1 in
	x86_64) printf amd64 ;;
	aarch64) printf arm64 ;;
	esac
}

# ---- content ----------------------------------------------------------------------------------------

# Prints modes, checksums and names of all files.
listing() { # listing DIRECTORY
	(cd "$1" && find . ! -type d -printf '%m %p ' -exec sha256sum {} ';' | awk '{ print $1, $3, $2 }' | sort -k 3)
}

contents() { # contents ARCHITECTURE
	local arch=$1 name=memleak-$version-$1-linux deb rpm in_tar
	deb=$out/memleak_$version-1_$(debian_name "$arch").deb
	rpm=$out/memleak-$version-1.$arch.rpm
	rm -rf "$work/unpacked"
	mkdir -p "$work"/unpacked/{tar,deb,rpm}
	tar -C "$work/unpacked/tar" --strip-components=1 -xzf "$out/$name.tar.gz"
	dpkg-deb -x "$deb" "$work/unpacked/deb"
	mv "$work"/unpacked/deb/usr/share/zsh/{vendor-completions,site-functions}
	rpm2archive -n - <"$rpm" | tar -C "$work/unpacked/rpm" -x
	in_tar=$(listing "$work/unpacked/tar")
	same "$arch: files of the .deb" "$in_tar" "$(listing "$work/unpacked/deb/usr")"
	same "$arch: files of the .rpm" "$in_tar" "$(listing "$work/unpacked/rpm/usr")"
	same "$arch: outside of /usr" usr "$(ls "$work/unpacked/deb")"
	same "$arch: manual page" "$(cat man/memleak.1)" "$(zcat "$work/unpacked/tar/share/man/man1/memleak.1.gz")"
	same "$arch: owners" '' "$({ tar -tvzf "$out/$name.tar.gz" && dpkg-deb -c "$deb"; } | awk '$2 !~ "^(0/0|root/root)$"')"
	passed "$arch: the same $(wc -l <<<"$in_tar") files in .tar.gz, .deb and .rpm"

	# shellcheck disable=SC2016 # these are dpkg-deb's variables
	same "$arch: the .deb's fields" "memleak $version-1 $(debian_name "$arch") libc6 (>= 2.31), libgcc-s1" \
		"$(dpkg-deb --showformat='${Package} ${Version} ${Architecture} ${Depends}' -W "$deb")"
	same "$arch: the .rpm's fields" "memleak $version-1 $arch GPL-2.0-or-later" \
		"$(rpm -qp --qf '%{NAME} %{VERSION}-%{RELEASE} %{ARCH} %{LICENSE}' "$rpm")"
	# Compares with what rpm's own scripts say that a package of Debian 11's C library would provide. Distributions
	# state by hand that their loader knows the newer kind of hash table. All of them have a shell.
	same "$arch: what the .rpm requires, and Debian 11 has not" '' "$(rpm -qp --requires "$rpm" | grep -v '^rpmlib(' | sort -u |
		comm -23 - <({
			printf '%s\n' 'rtld(GNU_HASH)' /bin/sh
			find "target/sysroot/$arch/lib" -name '*.so*' | /usr/lib/rpm/find-provides
		} | sort -u))"
	scripts/dist.sh check "$arch" "$work/unpacked/tar/bin/memleak"
	passed "$arch: fields of the packages, and that they need glibc 2.31 and nothing else"
}

# Checks that the check itself refuses bad binaries.
refusals() {
	local other=x86_64
	[[ $native != x86_64 ]] || other=aarch64
	echo 'int main(void) { return 0; }' | cc -x c - -o "$work/today"
	refused 'newer than' scripts/dist.sh check "$native" "$work/today"
	echo 'int deflate(void); int main(void) { return deflate(); }' | cc -x c - -o "$work/shared" -lz
	refused 'needs libz' scripts/dist.sh check "$native" "$work/shared"
	refused 'not for' scripts/dist.sh check "$other" "$work/today"
	passed 'a binary for a newer glibc, another library or another machine is refused'
}

# ---- in a root of its own ----------------------------------------------------------------------------

# Runs a command in the root. Mounts exist only for the time of that command, and only the command sees them. So no
# mount is left however this script ends, and removing the root cannot reach into a mount.
in_root() { # in_root COMMAND…
	# shellcheck disable=SC2016 # these are the inner shell's variables
	unshare --mount --propagation private sh -euc '
		root=$1
		shift
		for dir in proc sys dev; do mount --rbind "/$dir" "$root/$dir"; done
		exec chroot "$root" "$@"' sh "$root" env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
		DEBIAN_FRONTEND=noninteractive "$@"
}

# Unpacks a fresh minimal Debian 11.
fresh_root() {
	local packed=$debian_lists/bullseye-$native.tar
	rm -rf --one-file-system "$root"
	if [[ ! -e $packed ]]; then
		mkdir -p "$debian_lists"
		printf 'Fetching a minimal Debian 11\n'
		unshare --mount --propagation private debootstrap --variant=minbase --keyring="$debian_keyring" \
			bullseye "$root" "$(debian_mirror)" >"$work/debootstrap.log" ||
			die "debootstrap fails: see $work/debootstrap.log"
		tar -C "$root" -cf "$packed.part" .
		mv "$packed.part" "$packed"
		rm -rf --one-file-system "$root"
	fi
	mkdir "$root"
	tar -C "$root" -xf "$packed"
}

# Lists all files except the package managers' own state.
state() {
	(cd "$root" && find . -path ./var/lib/dpkg -prune -o -path ./var/lib/rpm -prune -o -path ./var/lib/apt -prune -o \
		-path ./var/cache -prune -o -path ./var/log -prune -o -path ./dev -prune -o \
		\( -type d -printf '%p/ %m\n' -o -printf '%p %m %s %t %l\n' \) | sort)
}
# Prints the files of the second state that are not in the first.
added() { comm -13 <(echo "$1") <(echo "$2") | sed -n 's/^\.\([^ ]*[^ /]\) .*/\1/p'; }

works() {
	local said row
	same 'memleak --version' "memleak $version" "$(in_root memleak --version)"
	said=$(in_root memleak doctor) || die "memleak doctor in the root: $said"
	row=$(in_root memleak run --format json -- true 2>&1) || die "memleak run in the root: $row"
	[[ $row == *'"comm":"true"'* ]] || die "memleak run in the root: $row"
}

# Tests users that are not in /etc/passwd, for example from LDAP. libnss-extrausers stands for such a source.
foreign_user() {
	local row
	[[ -e $(echo "$work"/libnss-extrausers_*.deb) ]] ||
		(cd "$work" && apt_of bullseye "$(debian_name "$native")" apt-get -qq download libnss-extrausers)
	cp "$work"/libnss-extrausers_*.deb "$root/extrausers.deb"
	in_root dpkg -i /extrausers.deb >/dev/null
	sed -i 's/^passwd:.*/passwd: files extrausers/' "$root/etc/nsswitch.conf"
	mkdir -p "$root/var/lib/extrausers"
	echo 'elsewhere:x:4242:4242::/:/bin/sh' >"$root/var/lib/extrausers/passwd"
	row=$(in_root memleak run --user elsewhere -- true 2>&1) || die "memleak run --user elsewhere: $row"
	[[ $row == *'4242 '*' elsewhere '*' true '* ]] || die "memleak does not know the name of user 4242: $row"
	passed 'a user from another source than /etc/passwd is known by name'
}

# Runs memleak as examples/kubernetes describes it: in a root that cannot be written, with a container's /sys, which
# cannot be written either, and the node's control groups in it. It has the manifest's capabilities and no others. The
# processes of the node are in another root.
on_a_node() {
	local manifest=examples/kubernetes/memleak.yaml capabilities numbers pid found=''
	local -a words
	capabilities=$(sed -n 's/^ *add: \[\(.*\)\]$/\1/p' $manifest | tr -d ' ')
	# setpriv of Debian 11 knows the newer ones only by their numbers.
	numbers=$(tr ',' '\n' <<<"$capabilities" | while read -r name; do
		awk -v "name=CAP_$name" '$1 == "#define" && $2 == name { printf ",+cap_%s", $3 }' /usr/include/linux/capability.h
	done)
	# A window of one second, and an address that only this machine reaches.
	mapfile -t words < <(sed -n 's/^ *args: \[\(.*\)\]$/\1/p' $manifest | sed 's/, /\n/g' | tr -d '"' |
		sed 's/^60$/1/; s/^0\.0\.0\.0:/127.0.0.1:/')
	[[ ${words[*]} == *'127.0.0.1:9464' && $capabilities == BPF,* ]] || die "$manifest is not as expected"
	printf '%s\n' '#include <stdlib.h>' 'int main(void) { return !malloc(770); }' | cc -O0 -x c - -o "$work/on-the-node"
	# shellcheck disable=SC2016 # these are the inner shell's variables
	unshare --mount --propagation private sh -euc '
		root=$1
		shift
		mount --bind "$root" "$root"
		cd "$root"
		mount --rbind /proc proc
		mount --bind /sys sys
		mount -o remount,bind,ro sys
		mount --rbind /sys/fs/cgroup sys/fs/cgroup
		mount -o remount,bind,ro sys/fs/cgroup
		mount -o remount,bind,ro "$root"
		exec chroot . "$@"' sh "$root" setpriv --no-new-privs --inh-caps=-all \
		--bounding-set="-all$numbers" memleak "${words[@]}" 2>"$work/on-a-node.log" &
	pid=$!
	for _ in {1..30}; do
		sleep 1
		"$work/on-the-node"
		found=$(curl -sS http://127.0.0.1:9464/metrics 2>/dev/null | grep '^memleak_leaked_bytes_total{comm="on-the-node"' || true)
		[[ -z $found ]] || break
	done
	kill "$pid" 2>/dev/null || true
	wait "$pid" || die "memleak on a node ends with $?: $(cat "$work/on-a-node.log")"
	[[ $found =~ ' '([0-9]+)$ ]] || die "memleak on a node does not see a process: $found $(cat "$work/on-a-node.log")"
	((BASH_REMATCH[1] % 770 == 0)) || die "memleak on a node counts otherwise: $found"
	if grep -q ' cgroup2 ' /proc/self/mounts; then
		[[ $found == *'cgroup="/'* ]] || die "memleak on a node does not see the control groups: $found"
	fi
	passed "a node: all is counted from a root that cannot be written, with $capabilities"
}

# Checks that a job has written a file of the root as its own user.
written_by_runner() { # written_by_runner FILE
	[[ -s $root$1 && $(stat -c %U "$root$1") == "$(stat -c %U "$root/home/runner")" ]] ||
		die "the job has not written $1 as the runner's user"
}

# Runs the step of examples/ci/github as a runner's user does, who is not root and may call sudo, on a project that loses
# memory. The root has the tools of a runner's image that the step and the project need.
in_a_job() {
	local said home=$root/home/runner
	cp /etc/resolv.conf "$root/etc/"
	in_root sh -c 'apt-get -qq update && apt-get -qq install --no-install-recommends sudo make gcc libc6-dev' \
		>"$work/apt.log" 2>&1 || die "apt-get install: $(tail -n 5 "$work/apt.log")"
	in_root useradd --create-home runner
	echo 'runner ALL=(ALL) NOPASSWD:ALL' >"$root/etc/sudoers.d/runner"
	mkdir "$home/temp"
	cp -r examples/ci/c "$home/project"
	cp -r examples/ci/github "$home/action"
	cat >"$home/job.sh" <<-'JOB'
		set -e
		cd ~/project
		make -s CFLAGS=-g tidy messy
		export RUNNER_TEMP=$HOME/temp GITHUB_STEP_SUMMARY=$HOME/summary GITHUB_OUTPUT=$HOME/output
		MEMLEAK_RUN='make check' MEMLEAK_OPTIONS="--stacks --fail-on-lost 0 --gate-exe './**'" ~/action/run.sh
	JOB
	in_root chown -R runner: /home/runner
	! said=$(in_root su runner -c 'bash ~/job.sh' 2>&1) || die "the job passes: $said"
	[[ $said == *'::error file=messy.c,line=8,'* ]] || die "the job names no line: $said"
	grep -q 'gate failed' "$home/summary" || die "the job's summary: $(cat "$home/summary")"
	while IFS='=' read -r _ file; do
		written_by_runner "$file"
	done <"$home/output"
	same 'outputs of the job' junit,sarif "$(cut -d = -f 1 "$home/output" | paste -sd ,)"
	passed "a job of GitHub's: the step fails, names the line, and leaves its reports to the runner's user"

	# The lines of GitLab's job: the last of them is folded.
	awk '/^  script:/ { on = 1; next } /^  artifacts:/ { on = 0 }
		on { sub(/^ +/, ""); if ($0 == "- >-") { fold = 1; next } sub(/^- /, ""); printf "%s%s", $0, fold ? " " : "\n" }' \
		examples/ci/gitlab/gitlab-ci.yml >"$home/gitlab.sh"
	! said=$(in_root su runner -c 'cd ~/project && bash -e ~/gitlab.sh' 2>&1) || die "GitLab's job passes: $said"
	[[ $said == *'gate failed: 1 of 2 processes'* ]] || die "GitLab's job: $said"
	for file in memleak.xml memleak-quality.json; do
		written_by_runner "/home/runner/project/$file"
	done
	passed "a job of GitLab's: the same"
}

test_deb() {
	local deb before after
	deb=memleak_$version-1_$(debian_name "$native").deb
	fresh_root
	cp "$out/$deb" "$root/"
	before=$(state)
	# apt itself checks the package's dependencies, or refuses. It has no list of packages to fetch from.
	in_root apt-get -qq install "/$deb" >"$work/apt.log" 2>&1 || die "apt-get install: $(cat "$work/apt.log")"
	after=$(state)
	same 'files that are only there, or only in the package' \
		"$(in_root dpkg -L memleak | while read -r file; do
			[[ -d $root$file ]] || printf '%s\n' "$file"
		done | sort)" "$(added "$before" "$after" | sort)"
	same 'dpkg --verify' '' "$(in_root dpkg --verify memleak)"
	works
	passed '.deb: installed in Debian 11, and works there on this kernel'
	in_root apt-get -qq purge memleak >"$work/apt.log" 2>&1 || die "apt-get purge: $(cat "$work/apt.log")"
	same 'left after the purge' "$before" "$(state)"
	passed '.deb: nothing is left after the purge'
	in_root dpkg -i "/$deb" >"$work/apt.log"
	foreign_user
	on_a_node
	in_a_job
}

# Debian's rpm knows no package that provides the C library. A test above checks that rpm would find it.
test_rpm() {
	local before after rpm=(rpm --root "$root" --dbpath /var/lib/rpm --force-debian)
	fresh_root
	# RPM distributions have these directories in their package `filesystem`, or with the shells.
	mkdir -p "$root"/usr/share/{zsh/site-functions,fish/vendor_completions.d}
	before=$(state)
	"${rpm[@]}" -i --nodeps "$out/memleak-$version-1.$native.rpm"
	after=$(state)
	same 'files that are only there, or only in the package' \
		"$("${rpm[@]}" -ql memleak | sort)" "$(added "$before" "$after" | sort)"
	same 'rpm --verify' '' "$("${rpm[@]}" --nodeps -V memleak 2>&1)"
	works
	passed '.rpm: installed, and works'
	"${rpm[@]}" -e memleak
	same 'left after the removal' "$before" "$(state)"
	passed '.rpm: nothing is left after the removal'
}

test_tar() {
	fresh_root
	tar -C "$root/usr/local" --strip-components=1 -xzf "$out/memleak-$version-$native-linux.tar.gz"
	works
	passed '.tar.gz: unpacked in /usr/local, and works'
}

test_foreign() { # test_foreign ARCHITECTURE
	local arch=$1 run
	contents "$arch"
	run=("qemu-$arch-static" -L "target/sysroot/$arch" "$work/unpacked/tar/bin/memleak")
	same "$arch: --version" "memleak $version" "$("${run[@]}" --version)"
	[[ $("${run[@]}" --help) == *Usage:* ]] || die "$arch: --help"
	passed "$arch: starts under qemu"
}

# ----------------------------------------------------------------------------------------------------

((EUID == 0)) || die 'installing packages takes root'
[[ -e $out/SHA256SUMS ]] || die "there is no release in $out: make dist"
mkdir -p "$work"
trap 'rm -rf --one-file-system "$root" "$work/unpacked"' EXIT
(cd $out && sha256sum --quiet -c SHA256SUMS)
same 'files without a checksum' "$(cd $out && ls memleak*)" "$(awk '{ print $2 }' $out/SHA256SUMS)"
passed 'checksums'
refusals
contents "$native"
test_deb
test_rpm
test_tar
for arch in x86_64 aarch64; do
	[[ $arch == "$native" ]] || test_foreign "$arch"
done
