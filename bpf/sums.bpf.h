/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a living task adds to its heap's counters. */
#ifndef MEMLEAK_SUMS_H
#define MEMLEAK_SUMS_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "wanted.bpf.h"

/* Whether a leader has ended with its whole process: no program is called for it any more. */
static __always_inline bool has_ended(struct task_struct *leader)
{
	return leader->exit_state && !BPF_CORE_READ(leader, signal, live.counter);
}

/* Returns false if the task has no heap. */
static __always_inline bool sum_of(struct task_struct *task, struct thread_sum *sum)
{
	struct thread *thread = thread_of(task);

	sum->leader = task->pid == task->tgid;
	if (thread && thread->heap) {
		sum->heap = thread->heap;
		sum->sum = thread->sum;
		sum->live = thread->live;
		sum->sole = thread->sole;
		sum->leader &= !thread->borrowed;
		sum->joined = 1;
	} else if (sum->leader && !has_ended(task)) {
		/* It may have a heap that it has not joined. */
		sum->heap = heap_of_process(task);
	}
	if (!sum->heap)
		return false;
	sum->uid = BPF_CORE_READ(task, real_cred, uid.val);
	sum->cgroup = cgroup_of(task);
	sum->outside = is_outside(task);
	bpf_core_read(sum->comm, COMM_LEN, &task->comm);
	return true;
}

#endif
