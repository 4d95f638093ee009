# shellcheck shell=bash
# Source this file to get packages of any Debian suite and architecture. They come from the mirror that this machine's
# apt uses, with signatures checked. apt's own state stays untouched. The caller must define `die`.

debian_keyring=/usr/share/keyrings/debian-archive-keyring.gpg
debian_lists=$PWD/target/debian

debian_mirror() {
	local uri=${DEBIAN_MIRROR-}
	# shellcheck disable=SC2016 # these are apt's variables
	[[ -n $uri ]] || uri=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
		sed -n 's/^Debian //p' | head -n 1)
	[[ -n $uri ]] || die "this machine's apt sources name no mirror of Debian: name one in DEBIAN_MIRROR"
	printf '%s' "$uri"
}

# Runs apt with the lists of one suite. The lists are renewed once a day. ARCHITECTURE is `source` for source packages.
apt_of() { # apt_of SUITE ARCHITECTURE COMMAND…: e.g. apt_of sid arm64 apt-cache search linux-image
	local suite=$1 arch=$2 dir=$debian_lists/$1-$2 uri kind=deb
	shift 2
	if [[ $arch == source ]]; then
		arch=$(dpkg --print-architecture) kind=deb-src
	fi
	if [[ -z $(find "$dir/updated" -mtime -1 2>/dev/null) ]]; then
		mkdir -p "$dir"/{state/lists/partial,cache/archives/partial}
		uri=$(debian_mirror)
		printf '%s [signed-by=%s] %s %s main\n' "$kind" "$debian_keyring" "$uri" "$suite" >"$dir/sources.list"
		apt_with "$dir" "$arch" apt-get update >&2
		touch "$dir/updated"
	fi
	apt_with "$dir" "$arch" "$@"
}

apt_with() { # apt_with DIRECTORY ARCHITECTURE COMMAND…
	local dir=$1 arch=$2 tool=$3
	shift 3
	"$tool" -q -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=- \
		-o Dir::State="$dir/state" -o Dir::State::status=/dev/null -o Dir::Cache="$dir/cache" \
		-o APT::Architecture="$arch" -o APT::Architectures="$arch" -o Acquire::Languages=none \
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Sandbox::User=root "$@"
}
