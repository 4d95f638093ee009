#!/usr/bin/env bash
# Makes a release in target/dist: a tar archive, a .deb and an .rpm with the same files for each architecture, and
# SHA256SUMS of all.
#
#     scripts/dist.sh
#     scripts/dist.sh check ARCHITECTURE BINARY     checks that BINARY needs glibc 2.31 and nothing else, as promised
#
# Times in a release are those of the last commit (or SOURCE_DATE_EPOCH). No path or name of this machine is in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/parts.sh
source scripts/parts.sh
umask 022

# glibc of Debian 11. Newer systems have it, older systems are not supported.
newest_glibc=2.31
arches=(x86_64 aarch64)
out=target/dist
parts=$out/parts
tools=target/dist-tools

die() {
	printf 'dist: %s\n' "$*" >&2
	exit 1
}

check() { # check ARCHITECTURE BINARY
	local arch=$1 file=$2 machine library newest
	machine=$(readelf -hW "$file" | sed -n 's/^ *Machine: *//p')
	case $arch/$machine in
	x86_64/*X86-64 | aarch64/AArch64) ;;
	*) die "$file is for '$machine', not for $arch" ;;
	esac
	# All of these belong to glibc, except libgcc_s, which glibc itself needs.
	while read -r library; do
		case $library in
		libc.so.6 | libpthread.so.0 | libdl.so.2 | libgcc_s.so.1 | ld-linux-x86-64.so.2 | ld-linux-aarch64.so.1) ;;
		*) die "$file needs $library, which a machine may lack" ;;
		esac
	done < <(readelf -dW "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
	newest=$(readelf -VW "$file" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
	[[ -n $newest ]] || die "$file is not linked with glibc"
	[[ $(printf '%s\n' "${newest#GLIBC_}" $newest_glibc | sort -V | tail -n 1) == "$newest_glibc" ]] ||
		die "$file needs $newest, newer than $newest_glibc"
}

# Compiles the tools without optimisation, as .ci/run does: they run only for seconds.
install_tools() {
	local tool
	for tool in cargo-deb@3.8.0 cargo-generate-rpm@0.21.1; do
		if ! grep -qs "^\"${tool/@/ } " "$tools/.crates.toml"; then
			printf 'Installing %s into %s\n' "$tool" "$tools"
			cargo install --locked --quiet --debug --root "$tools" "$tool"
		fi
	done
}

# Prints what is in the binary, and the notices that the authors ask to be kept with it. A crate that is also offered
# under the MIT licence is taken under that licence.
notices() { # notices ARCHITECTURE
	local arch=$1 crate version licence dir file
	local -a files
	printf '%s\n\n' "memleak is free software under the GNU General Public License, version 2 or later: see LICENSE." \
		"The binary contains what follows, and Rust's standard library (MIT or Apache-2.0)."
	rule "libelf, of elfutils (GPL-2.0-or-later or LGPL-3.0-or-later)"
	printf 'Taken under the first: see LICENSE. Source: the elfutils package of Debian 11.\n'
	rule "zlib"
	sed -n '/Copyright (C)/,/madler@/p' "target/sysroot/$arch/usr/include/zlib.h"
	while read -r crate version licence; do
		dir=$(find "${CARGO_HOME:-$HOME/.cargo}"/registry/src -mindepth 2 -maxdepth 2 -name "$crate-${version#v}" | head -n 1)
		[[ -n $dir ]] || die "the source of $crate is not where cargo unpacks it"
		rule "$crate $version ($licence)"
		mapfile -t files < <(find "$dir" -maxdepth 1 -type f -iname 'licen[cs]e*mit*' | sort)
		((${#files[@]} > 0)) || mapfile -t files < <(find "$dir" "$dir/libbpf" -maxdepth 1 -type f \
			\( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'unlicense*' \) 2>/dev/null | sort)
		for file in "${files[@]}"; do
			tr -d '\r' <"$file"
			echo
		done
	done < <(cargo tree --locked --target "$arch-unknown-linux-gnu" --edges normal,no-proc-macro --prefix none \
		--format '{p} ({l})' | sed -n '/^memleak /d; s/ (\*)$//; s/^\([^ ]*\) \([^ ]*\) (\(.*\))$/\1 \2 \3/p' | sort -u)
}

rule() { printf '\n==== %s ====\n\n' "$1"; }

# Collects the files of a package. They get the commit's time, and both packages keep it.
collect() { # collect ARCHITECTURE BINARY
	rm -rf $parts
	collect_parts $parts
	cp "$2" $parts/
	notices "$1" >$parts/copyright
	find $parts -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
}

# Makes the archive. Its layout is that of /usr and /usr/local, because it is unpacked there.
archive() { # archive DEB NAME
	local deb=$1 name=$2 dir=$parts/$2
	rm -rf "$dir"
	mkdir -p "$dir"
	dpkg-deb -x "$deb" "$dir"
	mv "$dir"/usr/* "$dir"
	rmdir "$dir/usr"
	mv "$dir"/share/zsh/{vendor-completions,site-functions}
	tar -C "$parts" --format=gnu --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
		-c "$name" | gzip -9n >"$out/$name.tar.gz"
}

# Builds both architectures at once, so that build scripts, which run on this machine, are compiled once. Symbols are
# stripped: a release has no debug information, and the names of functions are a fifth of the binary.
build() {
	local -a around=() command=(cargo build --release --locked --bin memleak)
	local arch
	for arch in "${arches[@]}"; do
		around+=(scripts/sysroot.sh "$arch")
		command+=(--target "$arch-unknown-linux-gnu")
	done
	CARGO_PROFILE_RELEASE_STRIP=symbols "${around[@]}" "${command[@]}"
}

dist() { # dist ARCHITECTURE
	local arch=$1 target=$1-unknown-linux-gnu deb=amd64
	[[ $arch != aarch64 ]] || deb=arm64
	check "$arch" "target/$target/release/memleak"
	collect "$arch" "target/$target/release/memleak"
	deb=$out/memleak_$version-1_$deb.deb
	cargo deb --quiet --no-build --no-strip --target "$target" --output "$deb" >/dev/null
	cargo generate-rpm --target "$target" --auto-req find-requires --output "$out/memleak-$version-1.$arch.rpm"
	archive "$deb" "memleak-$version-$arch-linux"
}

if [[ ${1-} == check ]]; then
	(($# == 3)) || die 'usage: scripts/dist.sh check ARCHITECTURE BINARY'
	check "$2" "$3"
	exit
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} || die 'neither git nor SOURCE_DATE_EPOCH gives the time of this release'
export SOURCE_DATE_EPOCH
PATH=$PWD/$tools/bin:$PATH
install_tools
build
rm -rf $out
for arch in "${arches[@]}"; do
	dist "$arch"
done
rm -r $parts
(cd $out && sha256sum memleak* >SHA256SUMS && ls -l)
