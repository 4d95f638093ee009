/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who sent which signal to memleak and to the command: what reached both must not be passed on, nor
 * what the command's own tree sent.
 */
#ifndef MEMLEAK_SIGNALS_H
#define MEMLEAK_SIGNALS_H

#include "core.h"
#include "kernels.bpf.h"
#include "pids.bpf.h"

struct signal_key {
	__u32 signal;
	__u32 sender; /* as memleak sees it; 0: outside its pid namespace */
};

/* The last time of each. */
struct signal_seen {
	__u64 to_memleak_ns;
	__u64 to_command_ns;
	__u64 of_tree; /* the sender was a followed process */
};

/*
 * More senders than ever send something within the few milliseconds for which an entry matters.
 * LRU: nothing needs to be deleted. Preallocated: signals are sent with locks held.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct signal_key);
	__type(value, struct signal_seen);
} signals_seen SEC(".maps");

/* Set by user space before the command is released; as memleak sees them. */
__u32 memleak_pid = 0;
__u32 command_pid = 0;

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
