/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether a process is to be held at its end, so that user space can read its memory, and whether
 * that hold is over. The state is in its heap: enum reach_state. How it waits is in holds.bpf.h.
 */
#ifndef MEMLEAK_ENDINGS_H
#define MEMLEAK_ENDINGS_H

#include "core.h"
#include "inside.bpf.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "timers.bpf.h"
#include "wanted.bpf.h"

/* Processes that are held at their end. A ring of about 1,000. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 32 * 1024);
} endings SEC(".maps");

__u64 readings = 0;	      /* how often user space has ended reading a process */
__u64 unread_in_vain = ~0ULL; /* value of `readings` when a process waited for its turn too long */

extern struct task_struct *bpf_task_from_pid(__s32 pid) __ksym __weak;
extern void bpf_task_release(struct task_struct *task) __ksym __weak;

static __always_inline bool changes_reach(struct heap *heap, __u32 from, __u32 to)
{
	return __sync_val_compare_and_swap(&heap->reach, from, to) == from;
}

/* Whether the image has blocks, maybe of 0 bytes, that it has not freed. `bytes`: their size. */
static __always_inline bool has_blocks(struct thread *thread, struct heap *heap, __u64 bytes)
{
	/* Other threads may have any number. */
	return bytes || !thread->sole ||
	       thread->sum.alloc_count + heap->sum.alloc_count !=
		   thread->sum.free_count + heap->sum.free_count;
}

/* Whether the process has to be read. model/scan.rs says the same. */
static __always_inline bool is_reading_wanted(struct thread *thread, struct heap *heap)
{
	struct live *shared = shared_live(thread);
	__u64 bytes = heap->lost_bytes + (shared ? shared->bytes : thread->live.bytes);
	struct inside_live counted = {};

	if (inside)
		count_inside(heap, &counted);
	bytes += counted.bytes;
	if (read_all)
		return counted.blocks || has_blocks(thread, heap, bytes);
	if (!bytes || bytes > read_over)
		return bytes;
	if (__sync_fetch_and_add(&unread_bytes, bytes) + bytes <= read_total_over)
		return false;
	__sync_fetch_and_add(&unread_bytes, -bytes);
	return true;
}

/* memleak's ancestors must end whether or not it answers. */
static __always_inline bool is_ancestor_of_memleak(struct task_struct *task)
{
	if (scope == SCOPE_TREE)
		return false;
	for (int i = 0; i < MOST_ANCESTORS; i++)
		if (memleak_ancestors[i] == task->tgid)
			return true;
	return false;
}

static __always_inline bool is_realtime(struct task_struct *task)
{
	unsigned int policy = BPF_CORE_READ(task, policy);

	return policy == SCHED_FIFO || policy == SCHED_RR || policy == SCHED_DEADLINE;
}

/* Why the current process must not be held at its end; 0 if nothing speaks against it. */
static __always_inline __u32 objection_to_reading(struct task_struct *task, struct heap *heap)
{
	/* Others than its own threads go on in the same memory. */
	if (BPF_CORE_READ(task, vfork_done) || heap->users != heap->owners)
		return REACH_SHARED;
	if (is_realtime(task))
		return REACH_REALTIME;
	if (may_expire_within(task, read_within_ns))
		return REACH_TIMER;
	if (is_ancestor_of_memleak(task))
		return REACH_UNWANTED;
	/* If user space did not begin during a whole wait, it does not begin now. */
	if (unread_in_vain == readings)
		return REACH_TOO_LONG;
	return 0;
}

/*
 * Another signal that the task takes than those in `raised`, or a stop, or the freezer of its
 * control group (version 2).
 */
static __always_inline bool is_called_away(struct task_struct *task, __u64 raised)
{
	unsigned long pending = BPF_CORE_READ(task, pending.signal.sig[0]) |
				BPF_CORE_READ(task, signal, shared_pending.signal.sig[0]);

	return pending & ~BPF_CORE_READ(task, blocked.sig[0]) & ~raised ||
	       BPF_CORE_READ(task, jobctl) & JOBCTL_PENDING;
}

static __always_inline bool is_held_at_end(struct heap *heap)
{
	__u32 reach = *(volatile __u32 *)&heap->reach;

	return reach == REACH_WAITING || reach == REACH_READING;
}

/* The process is not held any longer. */
static __always_inline void give_up_reading(struct heap *heap, __u32 why)
{
	if (!changes_reach(heap, REACH_WAITING, why))
		changes_reach(heap, REACH_READING, why);
}

#endif
