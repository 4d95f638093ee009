#!/usr/bin/env bash
# Runs a command as root: directly if we are root, otherwise through sudo with the caller's environment.
# Cargo uses this script as the runner of tests and benchmarks. So a user builds as that user, and only what loads BPF
# programs runs as root. Without a command the script only checks whether it could run one.
set -euo pipefail

# The command must not see which user called sudo. memleak opens report files as that user, and tests put these files
# where only root may write. (On the path through sudo below, env removes the variables.)
if ((EUID == 0)); then
	if (($# == 0)); then exit 0; fi
	unset SUDO_UID SUDO_GID SUDO_USER
	exec "$@"
fi
what=${1:-the next command}

if ! command -v sudo >/dev/null; then
	echo "as-root: $what needs root, and sudo is not installed: run this as root, or install sudo" >&2
	exit 1
fi

# Without a terminal sudo cannot ask for a password, and its own message does not name the command.
if ! sudo -n true 2>/dev/null && ! { : </dev/tty; } 2>/dev/null; then
	echo "as-root: $what needs root, and sudo wants a password but there is no terminal: run this as root, or allow sudo without a password" >&2
	exit 1
fi

# sudo replaces PATH by its secure_path, and drops LD_LIBRARY_PATH even with -E. cargo sets LD_LIBRARY_PATH for the
# programs that it runs. A user's PATH may lack the directories of setcap, unshare and similar programs.
keep=(-u SUDO_UID -u SUDO_GID -u SUDO_USER "PATH=$PATH:/usr/sbin:/sbin")
if [[ -n ${LD_LIBRARY_PATH-} ]]; then
	keep+=("LD_LIBRARY_PATH=$LD_LIBRARY_PATH")
fi
if (($# == 0)); then
	exec sudo -v
fi
exec sudo -E env "${keep[@]}" "$@"
