#!/usr/bin/env bash
# Runs a command as root: at once where we are root, else through sudo with the caller's environment.
# Cargo takes it as the runner of tests and benchmarks, so that a user builds as that user and only
# what loads BPF programs is run with the rights for it. Without a command it only says whether it could.
set -euo pipefail

# Who called sudo must not matter to what runs here: memleak opens report files as that user, and tests
# put them where only root may write. (Through sudo below, env takes them out.)
if ((EUID == 0)); then
	if (($# == 0)); then exit 0; fi
	unset SUDO_UID SUDO_GID SUDO_USER
	exec "$@"
fi
what=${1:-what follows}

if ! command -v sudo >/dev/null; then
	echo "as-root: $what needs root, and sudo is not installed: run this as root, or install sudo" >&2
	exit 1
fi

# Without a terminal sudo cannot ask for a password; its own message does not say what needed it.
if ! sudo -n true 2>/dev/null && ! { : </dev/tty; } 2>/dev/null; then
	echo "as-root: $what needs root, and sudo wants a password but there is no terminal: run this as root, or allow sudo without a password" >&2
	exit 1
fi

# sudo replaces PATH by its secure_path and drops LD_LIBRARY_PATH even with -E; cargo sets the second
# for the programs that it runs.
# A user's PATH may lack the directories of setcap and unshare's like.
keep=(-u SUDO_UID -u SUDO_GID -u SUDO_USER "PATH=$PATH:/usr/sbin:/sbin")
if [[ -n ${LD_LIBRARY_PATH-} ]]; then
	keep+=("LD_LIBRARY_PATH=$LD_LIBRARY_PATH")
fi
if (($# == 0)); then
	exec sudo -v
fi
exec sudo -E env "${keep[@]}" "$@"
