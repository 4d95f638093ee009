/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a thread begins to be followed. How a heap begins, how tasks leave it, and how it ends. */
#ifndef MEMLEAK_HEAP_H
#define MEMLEAK_HEAP_H

#include "core.h"
#include "inside.bpf.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "wanted.bpf.h"

static const struct thread no_thread;
static const struct heap no_heap;

static __always_inline struct thread *new_thread(struct task_struct *task)
{
	struct thread *thread = make_thread(task);
	__u64 key = (__u64)task;

	if (!thread) {
		if (bpf_map_update_elem(&late_threads, &key, &no_thread, BPF_ANY))
			return 0;
		__sync_fetch_and_add(&late_count, 1);
		thread = bpf_map_lookup_elem(&late_threads, &key);
	}
	if (thread)
		__sync_fetch_and_add(&living_tasks, 1);
	return thread;
}

/*
 * A task is not followed any more. This is the last step: if no task is followed, every row has
 * been sent.
 */
static __always_inline void forget_thread(struct task_struct *task)
{
	__u64 key = (__u64)task;

	if (late_count)
		bpf_map_delete_elem(&late_threads, &key);
	__sync_fetch_and_add(&living_tasks, -1);
}

/*
 * A new heap, which is already in the map; 0 if it cannot be followed. It is filled in place,
 * because it is too large for the stack, and a program that can be preempted has no other memory of
 * its own.
 */
static __always_inline struct heap *new_heap(void)
{
	__u64 id = next_heap_id();
	struct heap *heap;

	if (bpf_map_update_elem(&heaps, &id, &no_heap, BPF_NOEXIST)) {
		__sync_fetch_and_add(&rows_lost, 1);
		return 0;
	}
	heap = heap_by_id(id);
	if (!heap)
		return 0;
	heap->id = id;
	heap->start_ns = bpf_ktime_get_ns();
	return heap;
}

/*
 * The heap is ready, and has one user. Map walkers skip heaps with `users == 0`: they are not
 * ready.
 */
static __always_inline void start_heap(struct heap *heap)
{
	heap->owners = 1;
	barrier();
	heap->users = 1;
}

/* Gives a thread its heap, and sets the thread's own counters to 0. */
static __always_inline void enter_heap(struct thread *thread, __u64 heap, bool sole)
{
	__builtin_memset(&thread->sum, 0, sizeof(thread->sum));
	thread->heap = heap;
	thread->live.bytes = 0;
	thread->live.peak = 0;
	thread->files = 0;
	thread->sole = sole;
	thread->borrowed = 0;
	thread->depth = 0;
	thread->free_count = 0;
}

/* Sends the row, or leaves it in the map until user space asks for it. */
static __always_inline void heap_ended(struct heap *heap)
{
	__u64 id = heap->id, taken = heap->sum.free_count - heap->lost_freed;
	__u32 size = heap->exe_len;

	__sync_fetch_and_add(&dead_blocks, heap->sum.alloc_count - heap->lost_blocks - taken);
	if (heap->reach != REACH_READ && heap->reach != REACH_UNWANTED &&
	    !(heap->flags & HEAP_EXEC))
		__sync_fetch_and_add(&unread_bytes, heap->live.bytes + heap->lost_bytes +
							unfreed_inside(&heap->inside));
	if (size > sizeof(heap->exe))
		size = sizeof(heap->exe);
	if (!bpf_ringbuf_output(&ended, heap, __builtin_offsetof(struct heap, exe) + size, 0)) {
		bpf_map_delete_elem(&heaps, &id);
		return;
	}
	set_flags(heap, HEAP_ENDED);
	__sync_fetch_and_add(&rows_waiting, 1);
}

/*
 * A process leaves its heap: by its last thread's exit, or by an exec. Tasks that share the heap
 * (CLONE_VM) may go on, and the row waits for them. But the end that the row reports is this one.
 */
static __always_inline void owner_leaves(struct task_struct *task, struct heap *heap, __u32 flags)
{
	heap->end_ns = bpf_ktime_get_ns();
	heap->uid = BPF_CORE_READ(task, real_cred, uid.val);
	heap->cgroup = cgroup_of(task);
	if (is_outside(task))
		flags |= HEAP_OUTSIDE;
	/* Comes last: user space may read the heap at any time. */
	set_flags(heap, flags | HEAP_OWNER_GONE);
}

/*
 * A task leaves its heap for good, and takes `leaving` users with it. Its sums are added to the
 * heap's. The last task that leaves ends the heap. `has_memory`: the task has the heap's memory
 * still.
 */
static __always_inline void leave_heap(struct thread *thread, struct heap *heap, __u32 leaving,
				       bool has_memory)
{
	bool last;

	__sync_fetch_and_add(&heap->sum.alloc_bytes, thread->sum.alloc_bytes);
	__sync_fetch_and_add(&heap->sum.alloc_count, thread->sum.alloc_count);
	__sync_fetch_and_add(&heap->sum.free_bytes, thread->sum.free_bytes);
	__sync_fetch_and_add(&heap->sum.free_count, thread->sum.free_count);
	__sync_fetch_and_add(&heap->sum.failed_allocs, thread->sum.failed_allocs);
	__sync_fetch_and_add(&heap->sum.unknown_frees, thread->sum.unknown_frees);
	__sync_fetch_and_add(&heap->sum.lost_calls, thread->sum.lost_calls);
	__sync_fetch_and_add(&heap->sum.hashed, thread->sum.hashed);
	thread->heap = 0;
	last = is_last_user(thread, heap, leaving);
	inside_left(heap, last, has_memory);
	if (last)
		heap_ended(heap);
}

#endif
