#!/usr/bin/env bash
# Lists the tools and libraries that this project needs from the system and that are missing, or installs them.
#
#     scripts/deps.sh check   [build|test|lint|bench|kernels|dist|libcs|valgrind|long|readers]
#     scripts/deps.sh install [build|test|lint|bench|kernels|dist|libcs|valgrind|long|readers]
#
# build: what compiles memleak
# test: build, and what its tests need (the default)
# lint: build and test, and what checks formats
# bench: build, and the tools that the benchmark compares with; memray, which is not packaged everywhere, comes by pip
# kernels: build and test, and what tests on other kernels
# dist: build, and what makes a release
# libcs: build, test and dist, for tests with other C libraries
# valgrind: build and test, and the programs that are compared with valgrind
# long: build and test, and the test runners and readers of the tests that take minutes
# readers: build, and the programs that read what memleak writes
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Columns: purpose | name | how to find it | Debian packages | Fedora packages (separated by spaces; none: "-").
# libbpf is compiled from libbpf-sys's own copy. That needs make, pkg-config and the headers of libelf and zlib.
# libbpf-cargo links BPF objects with libbpf itself, so it needs only clang of LLVM.
table='
build | cargo        | cargo                 | -                     | -
build | cc           | c-compiler            | gcc libc6-dev         | gcc glibc-devel
build | make         | command make          | make                  | make
build | pkg-config   | command pkg-config    | pkg-config            | pkgconf-pkg-config
build | clang (BPF)  | clang-bpf             | clang                 | clang
build | libelf       | header libelf.h       | libelf-dev            | elfutils-libelf-devel
build | zlib         | header zlib.h         | zlib1g-dev            | zlib-devel
test  | gcc          | command gcc           | gcc                   | gcc
test  | g++          | command g++           | g++                   | gcc-c++
test  | static C++   | static-library stdc++ | g++                   | libstdc++-static
test  | objcopy      | command objcopy       | binutils              | binutils
test  | jemalloc     | library jemalloc      | libjemalloc-dev       | jemalloc-devel
test  | tcmalloc     | library tcmalloc      | libgoogle-perftools-dev | gperftools-devel
test  | mimalloc     | library mimalloc      | libmimalloc-dev       | mimalloc-devel
test  | redis-server | command redis-server  | redis-server          | redis
test  | static libc  | static-libc           | libc6-dev             | glibc-static
test  | musl-gcc     | command musl-gcc      | musl-tools            | musl-gcc
test  | objcopy      | command objcopy       | binutils              | binutils
test  | xz           | command xz            | xz-utils              | xz
test  | dwz          | command dwz           | dwz                   | dwz
test  | python3      | command python3       | python3               | python3
test  | git          | command git           | git                   | git-core
test  | perl         | command perl          | perl                  | perl-interpreter
test  | sqlite3      | command sqlite3       | sqlite3               | sqlite
test  | addr2line    | command addr2line     | binutils              | binutils
test  | bash         | command bash          | bash                  | bash
test  | valgrind     | command valgrind      | valgrind              | valgrind
test  | unshare      | command unshare       | util-linux            | util-linux
test  | man          | command man           | man-db                | man-db
test  | setpriv      | command setpriv       | util-linux            | util-linux
test  | setcap       | command setcap        | libcap2-bin           | libcap
test  | sudo         | command sudo          | sudo                  | sudo
test  | strip        | command strip         | binutils              | binutils
test  | gdb          | command gdb           | gdb                   | gdb
test  | bwrap        | command bwrap         | bubblewrap            | bubblewrap
test  | strace       | command strace        | strace                | strace
test  | jemalloc     | library jemalloc      | libjemalloc-dev       | jemalloc-devel
test  | munged       | command munged        | munge                 | munge
test  | slurmctld    | command slurmctld     | slurmctld             | slurm-slurmctld
test  | slurmd       | command slurmd        | slurmd                | slurm-slurmd
test  | sbatch       | command sbatch        | slurm-client          | slurm
test  | promtool     | command promtool      | prometheus            | golang-github-prometheus
test  | influxd      | command influxd       | influxdb              | influxdb
test  | node_exporter | command prometheus-node-exporter | prometheus-node-exporter | node-exporter
test  | hostname     | command hostname      | hostname              | hostname
test  | systemd-analyze | command systemd-analyze | systemd           | systemd
lint  | clang-format | command clang-format  | clang-format          | clang-tools-extra
lint  | shellcheck   | command shellcheck    | shellcheck            | ShellCheck
bench | python3      | command python3       | python3               | python3
bench | valgrind     | command valgrind      | valgrind              | valgrind
bench | heaptrack    | command heaptrack     | heaptrack             | heaptrack
bench | jemalloc     | library jemalloc      | libjemalloc-dev       | jemalloc-devel
bench | tcmalloc     | library tcmalloc      | libgoogle-perftools-dev | gperftools-devel
bench | bpftrace     | command bpftrace      | bpftrace              | bpftrace
bench | unshare      | command unshare       | util-linux            | util-linux
kernels | qemu       | command qemu-system-x86_64 | qemu-system-x86  | qemu-system-x86-core
kernels | qemu (Arm) | command qemu-system-aarch64 | qemu-system-arm | qemu-system-aarch64-core
kernels | gcc (Arm)  | command aarch64-linux-gnu-gcc | gcc-aarch64-linux-gnu libc6-dev-arm64-cross | gcc-aarch64-linux-gnu
kernels | lld        | command ld.lld        | lld                   | lld
kernels | Debian keys | file /usr/share/keyrings/debian-archive-keyring.gpg | debian-archive-keyring | debian-keyring
kernels | cpio       | command cpio          | cpio                  | cpio
kernels | apt-get    | command apt-get       | apt                   | apt
kernels | dpkg-deb   | command dpkg-deb      | dpkg                  | dpkg
dist  | lld          | command ld.lld        | lld                   | lld
dist  | git          | command git           | git                   | git-core
dist  | readelf      | command readelf       | binutils              | binutils
dist  | apt-get      | command apt-get       | apt                   | apt
dist  | dpkg-deb     | command dpkg-deb      | dpkg                  | dpkg
dist  | Debian keys  | file /usr/share/keyrings/debian-archive-keyring.gpg | debian-archive-keyring | debian-keyring
dist  | debootstrap  | command debootstrap   | debootstrap           | debootstrap
dist  | rpm          | command rpm           | rpm                   | rpm
dist  | find-requires | command /usr/lib/rpm/find-requires | rpm      | rpm-build
dist  | rpm2archive  | command rpm2archive   | rpm                   | rpm
dist  | unshare      | command unshare       | util-linux            | util-linux
dist  | setpriv      | command setpriv       | util-linux            | util-linux
dist  | curl         | command curl          | curl                  | curl
dist  | qemu-user    | command qemu-aarch64-static | qemu-user-static | qemu-user-static-aarch64
readers | go          | command go            | golang-go             | golang
readers | chromium    | command chromium      | chromium              | chromium
readers | npm         | command npm           | npm                   | npm
readers | dh_view     | file /usr/libexec/valgrind/dh_view.js | valgrind | valgrind
valgrind | apt-get   | command apt-get       | apt                   | apt
valgrind | dpkg-query | command dpkg-query   | dpkg                  | dpkg
valgrind | bc        | command bc            | bc                    | bc
valgrind | bzip2     | command bzip2         | bzip2                 | bzip2
valgrind | column    | command column        | bsdextrautils         | util-linux
valgrind | ctags     | command ctags         | universal-ctags       | ctags
valgrind | curl      | command curl          | curl                  | curl
valgrind | diff      | command diff3         | diffutils             | diffutils
valgrind | file      | command file          | file                  | file
valgrind | gio       | command gio           | libglib2.0-bin        | glib2
valgrind | glib-compile-schemas | command glib-compile-schemas | libglib2.0-bin | glib2
valgrind | groff     | command grotty        | groff-base            | groff-base
valgrind | ip        | command ip            | iproute2              | iproute
valgrind | jq        | command jq            | jq                    | jq
valgrind | msgfmt    | command msgfmt        | gettext               | gettext
valgrind | openssl   | command openssl       | openssl               | openssl
valgrind | patch     | command patch         | patch                 | patch
valgrind | pkgconf   | command pkgconf       | pkgconf               | pkgconf
valgrind | tclsh     | command tclsh         | tcl                   | tcl
valgrind | wget      | command wget          | wget                  | wget1
valgrind | xxd       | command xxd           | xxd                   | xxd
valgrind | zip       | command zip           | zip                   | zip
valgrind | unzip     | command unzip         | unzip                 | unzip
valgrind | zstd      | command zstd          | zstd                  | zstd
long  | cmake        | command cmake         | cmake                 | cmake
long  | meson        | command meson         | meson                 | meson
long  | ninja        | command ninja         | ninja-build           | ninja-build
long  | pytest       | command pytest        | python3-pytest        | python3-pytest
long  | go           | command go            | golang-go             | golang
long  | pip          | command pip3          | python3-pip           | python3-pip
long  | npm          | command npm           | npm                   | npm
long  | time         | command /usr/bin/time | time                  | time
long  | nginx        | command nginx         | nginx                 | nginx
long  | gunicorn     | command gunicorn      | gunicorn              | python3-gunicorn
long  | curl         | command curl          | curl                  | curl
'

# The oldest Rust that compiles memleak, from Cargo.toml.
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../Cargo.toml")

say() { printf '%s\n' "$*"; }
die() {
	printf 'deps: %s\n' "$*" >&2
	exit 1
}

compiles() { # compiles SOURCE COMPILER [ARGS]…
	local source=$1
	shift
	printf '%s\n' "$source" | "$@" -x c - -o /dev/null 2>/dev/null
}

found() { # found KIND [ARGUMENT]
	case $1 in
	# A user's PATH may lack the directories of root's programs.
	command) PATH=$PATH:/usr/sbin:/sbin command -v "$2" >/dev/null ;;
	cargo)
		local version
		version=$(cargo --version 2>/dev/null) || return 1
		version=${version#cargo }
		[[ $(printf '%s\n%s\n' "$rust_needed" "${version%% *}" | sort -V | head -n 1) == "$rust_needed" ]]
		;;
	# A compiler is useless without the C library's headers.
	c-compiler) command -v cc >/dev/null && compiles '#include <stdlib.h>' cc -c ;;
	# Some builds of clang lack the BPF target.
	clang-bpf) command -v clang >/dev/null && compiles 'int a;' clang -target bpf -c ;;
	file) [[ -e $2 ]] ;;
	header) command -v cc >/dev/null && compiles "#include <$2>" cc -E ;;
	library) command -v cc >/dev/null && compiles 'int main(void) { return 0; }' cc "-l$2" ;;
	static-library) command -v g++ >/dev/null && [[ $(g++ -print-file-name="lib$2.a") == /* ]] ;;
	static-libc) command -v gcc >/dev/null && [[ $(gcc -print-file-name=libc.a) == /* ]] ;;
	*) die "no such check: $1" ;;
	esac
}

trim() {
	local text=$1
	text=${text#"${text%%[![:space:]]*}"}
	printf '%s' "${text%"${text##*[![:space:]]}"}"
}

purpose=${2:-test}
case $purpose in
build) wanted=' build ' ;;
test) wanted=' build test ' ;;
lint) wanted=' build test lint ' ;;
bench) wanted=' build bench ' ;;
kernels) wanted=' build test kernels ' ;;
dist) wanted=' build dist ' ;;
# These tests are linked like a release.
libcs) wanted=' build test dist ' ;;
valgrind) wanted=' build test valgrind ' ;;
long) wanted=' build test long ' ;;
readers) wanted=' build readers ' ;;
*) die "'$purpose' is none of build, test, lint, bench, kernels, dist, libcs, valgrind, long, readers" ;;
esac

if command -v apt-get >/dev/null; then
	manager=apt-get
elif command -v dnf >/dev/null; then
	manager=dnf
else
	manager=none
fi

missing=()
packages=()
rust_missing=false
look() {
	local row
	local -a cells
	missing=()
	packages=()
	rust_missing=false
	while IFS= read -r row; do
		[[ -n $row ]] || continue
		IFS='|' read -ra cells <<<"$row"
		[[ $wanted == *" $(trim "${cells[0]}") "* ]] || continue
		local -a check
		read -ra check <<<"${cells[2]}"
		if found "${check[@]}"; then
			continue
		fi
		missing+=("$(trim "${cells[1]}")")
		local -a names
		case $manager in
		dnf) read -ra names <<<"${cells[4]}" ;;
		*) read -ra names <<<"${cells[3]}" ;;
		esac
		local name
		for name in "${names[@]}"; do
			if [[ $name == - ]]; then
				rust_missing=true
			elif [[ " ${packages[*]-} " != *" $name "* ]]; then
				packages+=("$name")
			fi
		done
	done <<<"$table"
}

list() {
	local text
	printf -v text '%s, ' "$@"
	printf '%s' "${text%, }"
}

need_rust() {
	die "Rust $rust_needed or newer is missing (https://rustup.rs); under sudo, keep PATH or run make as yourself"
}

look
case ${1-} in
check)
	if ((${#missing[@]} == 0)); then
		say "Nothing is missing for $purpose."
		exit 0
	fi
	say "Missing: $(list "${missing[@]}")"
	if ((${#packages[@]} > 0)); then
		say "To install what is missing: make install-deps FOR=$purpose (packages: ${packages[*]})"
	fi
	if $rust_missing; then
		need_rust
	fi
	exit 1
	;;
install)
	if ((${#missing[@]} == 0)); then
		exit 0
	fi
	if $rust_missing; then
		need_rust
	fi
	say "Missing: $(list "${missing[@]}")"
	say "Installing with $manager: ${packages[*]}"
	case $manager in
	apt-get)
		"$here/as-root.sh" apt-get -qq update
		"$here/as-root.sh" env DEBIAN_FRONTEND=noninteractive \
			apt-get -qq -y install --no-install-recommends "${packages[@]}"
		;;
	dnf) "$here/as-root.sh" dnf -q -y install "${packages[@]}" ;;
	none) die "neither apt-get nor dnf is here: install the equivalents of: ${packages[*]}" ;;
	esac
	look
	if ((${#missing[@]} > 0)); then
		die "still missing after the installation: $(list "${missing[@]}")"
	fi
	;;
*)
	die "usage: deps.sh check|install [build|test|lint|bench|kernels|dist|libcs|valgrind|long|readers]"
	;;
esac
