#!/usr/bin/env bash
# Makes target/sysroot/ARCHITECTURE: what a binary must be linked with to run on Debian 11 and newer systems. That is
# Debian 11's C library (glibc 2.31), and libelf and zlib as archives. With a command, it then runs the command. In the
# command's environment cargo builds for that architecture, against the sysroot.
#
#     scripts/sysroot.sh x86_64|aarch64 [COMMAND…]      e.g. scripts/sysroot.sh aarch64 cargo build --release
#
# The result is in target/ARCHITECTURE-unknown-linux-gnu. clang compiles and lld links, for either architecture on
# either. Unlike gcc they take nothing from outside of a sysroot.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
source scripts/debian.sh

die() {
	printf 'sysroot: %s\n' "$*" >&2
	exit 1
}

arch=${1:?usage: scripts/sysroot.sh x86_64|aarch64 [COMMAND…]}
shift
case $arch in
x86_64) debian=amd64 ;;
aarch64) debian=arm64 ;;
*) die "'$arch' is neither x86_64 nor aarch64" ;;
esac
target=$arch-unknown-linux-gnu
triple=$arch-linux-gnu
root=$PWD/target/sysroot/$arch
# libelf1 and zlib1g are left out: without the shared library, -lelf takes the archive.
packages=(libc6 libc6-dev linux-libc-dev libgcc-s1 libgcc-10-dev libelf-dev zlib1g-dev)

unpack() {
	local part=$root.part link
	rm -rf "$root" "$part"
	mkdir -p "$part/debs"
	printf 'Fetching the C library of Debian 11 for %s\n' "$arch" >&2
	(cd "$part/debs" && apt_of bullseye "$debian" apt-get download "${packages[@]}" >&2)
	for link in "$part"/debs/*.deb; do
		dpkg-deb -x "$link" "$part"
	done
	rm -r "$part/debs" "${part:?}/usr/share"
	# An absolute link means a path in the sysroot.
	find "$part" -type l -lname '/*' | while read -r link; do
		ln -sfn --relative "$part$(readlink "$link")" "$link"
	done
	printf '%s\n' "${packages[*]}" >"$part/packages"
	mv "$part" "$root"
}

[[ $(cat "$root/packages" 2>/dev/null) == "${packages[*]}" ]] || unpack
(($# > 0)) || exit 0

for tool in clang ld.lld; do
	command -v "$tool" >/dev/null || die "$tool is missing: make install-deps FOR=dist"
done
[[ -d $(rustc --print target-libdir --target "$target") ]] ||
	die "Rust's library for $arch is missing: rustup target add $target"
# The name of a registry's directory depends on the mirror. Paths of this machine must not be in the binary: they are
# private, and would make two builds differ.
cargo fetch --quiet --locked --target "$target"
flags=(
	-C linker=clang -C "link-arg=--target=$triple" -C "link-arg=--sysroot=$root" -C link-arg=-fuse-ld=lld
	-L "native=$root/usr/lib/$triple" --remap-path-prefix "$PWD=/memleak"
)
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
	flags+=(--remap-path-prefix "$registry=/crates")
done
# These are flags and not the settings for a target's linker. Such settings would apply to build scripts too, and each
# change of the architecture would compile the build scripts anew.
name=${target//-/_}
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
exec env CARGO_BUILD_TARGET="$target" \
	"CARGO_TARGET_${name^^}_RUSTFLAGS=${flags[*]}" \
	"CC_$name=clang" "CFLAGS_$name=--target=$triple --sysroot=$root -ffile-prefix-map=$PWD=/memleak" \
	"$@"
