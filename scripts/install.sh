#!/usr/bin/env bash
# Installs memleak and its documents below a directory, or removes them. It builds nothing, so root needs no Rust.
#
#     scripts/install.sh install PREFIX DESTDIR BINARY
#     scripts/install.sh uninstall PREFIX DESTDIR
#
# The directory is DESTDIR, which may be empty, and PREFIX after it. The files and their places are those of packages:
# the list in Cargo.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/parts.sh
source scripts/parts.sh
umask 022

die() {
	printf 'install: %s\n' "$*" >&2
	exit 1
}

# Prints a line for each file: its mode, its path among the collected parts, and its path below the directory. `copyright`,
# the licences of all that is in the binary, is only in packages.
list() { # list PARTS
	local source target mode file found
	while read -r source target mode; do
		source=${source#target/dist/parts/}
		target=${target#usr/}
		# Debian has a directory of its own for packages.
		target=${target/vendor-completions/site-functions}
		[[ $source != copyright ]] || continue
		found=
		# A source may be a pattern. Then the target is a directory.
		for file in "$1"/$source; do
			[[ -e $file ]] || continue
			found=yes
			case $target in
			*/) printf '%s %s %s\n' "$mode" "${file#"$1/"}" "$target${file##*/}" ;;
			*) printf '%s %s %s\n' "$mode" "${file#"$1/"}" "$target" ;;
			esac
		done
		[[ -n $found ]] || die "Cargo.toml names $source, which is not there"
	done < <(sed -n '/^\[package\.metadata\.deb\]/,/^]/s/^ *\["\([^"]*\)", "\([^"]*\)", "\([^"]*\)"\],$/\1 \2 \3/p' Cargo.toml)
}

if [[ ${1-} == install && $# == 4 ]]; then
	binary=$4
	[[ -f $binary && -x $binary ]] || die "there is no $binary: run \`make\` first, as the user who builds"
elif [[ ${1-} == uninstall && $# == 3 ]]; then
	# Only its name matters.
	binary=/dev/null
else
	die 'usage: scripts/install.sh install PREFIX DESTDIR BINARY | uninstall PREFIX DESTDIR'
fi
[[ $2 == /* ]] || die "PREFIX is a path that begins with /, not '$2'"
[[ -z $3 || $3 == /* ]] || die "DESTDIR is empty, or a path that begins with /, not '$3'"
directory=$3${2%/}
parts=$(mktemp -d)
trap 'rm -rf -- "$parts"' EXIT
collect_parts "$parts"
cp -- "$binary" "$parts/memleak"
files=$(list "$parts")
[[ -n $files ]] || die 'Cargo.toml has no list of assets'

if [[ $1 == install ]]; then
	mkdir -p -- "$directory" 2>/dev/null || true
	[[ -w $directory ]] || die "cannot write to $directory: run \`sudo make install\`, or choose another PREFIX"
	while read -r mode part target; do
		install -D -m "$mode" -- "$parts/$part" "$directory/$target"
	done <<<"$files"
	printf 'installed %s and its documents below %s\n' "$directory/bin/memleak" "$directory"
else
	while read -r _ _ target; do
		rm -f -- "$directory/$target"
	done <<<"$files"
	# Other directories may belong to other programs, even if they are empty.
	for own in docs examples/slurm examples ''; do
		rmdir -- "$directory/share/doc/memleak/$own" 2>/dev/null || true
	done
	printf 'removed memleak from below %s\n' "$directory"
fi
