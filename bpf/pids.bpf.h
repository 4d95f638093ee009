/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The id of a process or task, as memleak and as /proc see it. */
#ifndef MEMLEAK_PIDS_H
#define MEMLEAK_PIDS_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"

/* Finds memleak's own pid namespace, and the one that /proc shows. memleak itself runs this. */
static __always_inline void find_own_namespace(void)
{
	struct task_struct *task = current_task();
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	struct task_struct *parent = task;

	memleak_tgid = task_field(task, tgid);
	for (int i = 0; i < MOST_ANCESTORS; i++) {
		parent = BPF_CORE_READ(parent, real_parent);
		memleak_ancestors[i] = BPF_CORE_READ(parent, tgid);
	}
	own_level = BPF_CORE_READ(pid, level);
	/* User space has stored in it how many levels /proc is above memleak. */
	proc_level = own_level - proc_level;
	bpf_core_read(&own_ns, sizeof(own_ns), &pid->numbers[own_level].ns);
}

/*
 * The id as memleak sees it; 0 if there is none in memleak's pid namespace. A function that is
 * verified once takes no pointer into the kernel, so it takes the address of the struct pid.
 */
SUBPROGRAM __u32 own_id(__u64 address)
{
	struct pid *pid = (struct pid *)address;
	struct upid upid = {};

	if (!pid || BPF_CORE_READ(pid, level) < own_level)
		return 0;
	bpf_core_read(&upid.nr, sizeof(upid.nr), &pid->numbers[own_level].nr);
	bpf_core_read(&upid.ns, sizeof(upid.ns), &pid->numbers[own_level].ns);
	return upid.ns == own_ns ? upid.nr : 0;
}

/* The process id as memleak sees it; 0 if the process is not in memleak's pid namespace. */
static __always_inline __u32 own_pid_of(struct task_struct *leader)
{
	return own_id((__u64)BPF_CORE_READ(leader, thread_pid));
}

/* The id of a task in the /proc that memleak reads; 0 if it has none there. */
static __always_inline __u32 proc_pid_of(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 nr = 0;

	if (pid && BPF_CORE_READ(pid, level) >= proc_level)
		bpf_core_read(&nr, sizeof(nr), &pid->numbers[proc_level].nr);
	return nr;
}

#endif
