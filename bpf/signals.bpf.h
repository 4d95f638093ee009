/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which process sent which signal to memleak and to the command. memleak must not pass on a signal
 * that reached both, or one that came from the command's own tree.
 */
#ifndef MEMLEAK_SIGNALS_H
#define MEMLEAK_SIGNALS_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "pids.bpf.h"

/* The current task sends `signal` to `target`. */
static __always_inline void signal_sent(int signal, struct task_struct *target)
{
	struct task_struct *task = current_task();
	__u32 pid = own_pid_of(BPF_CORE_READ(target, group_leader));
	struct signal_key key = {.signal = signal};
	struct signal_seen seen = {}, *known;

	if (!pid || (pid != memleak_pid && pid != command_pid))
		return;
	key.sender = own_pid_of(BPF_CORE_READ(task, group_leader));
	known = bpf_map_lookup_elem(&signals_seen, &key);
	if (known)
		seen = *known;
	if (pid == memleak_pid)
		seen.to_memleak_ns = bpf_ktime_get_ns();
	else
		seen.to_command_ns = bpf_ktime_get_ns();
	seen.of_tree = thread_of(task) != 0;
	bpf_map_update_elem(&signals_seen, &key, &seen, BPF_ANY);
}

#endif
