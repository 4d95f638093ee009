/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How processes that are running before they are followed get a heap, and how their threads join
 * it. A process gets its heap when memleak starts. If the filters want it only later, it gets the
 * heap at its next call of an allocator. Each thread joins by itself, at its own next call. So only
 * the thread itself ever writes to its counters.
 */
#ifndef MEMLEAK_JOIN_H
#define MEMLEAK_JOIN_H

#include "core.h"
#include "exe.bpf.h"
#include "heap.bpf.h"
#include "heap_files.bpf.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "pids.bpf.h"
#include "survey.bpf.h"
#include "wanted.bpf.h"

/*
 * Makes a heap for a running process, which is the heap's only user. Returns its id; 0 if that
 * fails.
 */
static __always_inline __u64 new_heap_of_running(struct task_struct *task,
						 struct task_struct *leader)
{
	struct heap *heap = new_heap();
	struct found_files *files;

	if (!heap)
		return 0;
	heap->start_ns = BPF_CORE_READ(leader, start_time);
	heap->pid = own_pid_of(leader);
	heap->ppid = own_pid_of(BPF_CORE_READ(leader, real_parent, group_leader));
	heap->flags = HEAP_ATTACHED | HEAP_PROCESS;
	if (BPF_CORE_READ(leader, exit_state)) {
		heap->flags |= HEAP_LEADER_GONE;
		/* It has exited since user space looked. */
		if (pid_filter)
			heap->flags |= HEAP_UNREACHED;
		bpf_core_read(heap->comm, COMM_LEN, &leader->comm);
	}
	name_running_exe(heap, task);
	files = bpf_map_lookup_elem(&found, &heap->pid);
	if (files) {
		heap->file_count = files->count;
		__builtin_memcpy(heap->files, files->files, sizeof(heap->files));
	}
	expect_joins(heap, leader);
	start_heap(heap);
	return heap->id;
}

/*
 * The heap of a running process. Makes it if the process has none and is wanted. `task` is any
 * thread of the process, and `leader` its leader.
 */
static __always_inline __u64 adopt(struct task_struct *task, struct task_struct *leader)
{
	__u64 id, first;

	/* This check is first, because threads of other processes come here with each call. */
	if (scope == SCOPE_CHOSEN && !is_chosen(leader))
		return 0;
	id = heap_of_process(leader);
	if (id)
		return id;
	if (scope == SCOPE_ALL && !is_wanted(task, leader))
		return 0;
	id = new_heap_of_running(task, leader);
	if (!id)
		return 0;
	first = claim_process(leader, id);
	if (first != id)
		drop_heap(id);
	return first;
}

/*
 * The current thread joins the heap of its process, if that is followed, or is to be followed.
 * Returns whether the thread joined.
 */
SUBPROGRAM int join(void)
{
	struct task_struct *task = current_task(), *leader;
	struct thread *thread;
	struct heap *heap;
	__u64 id;

	/* Until its exec, a child of vfork uses the memory of its parent, which waits. */
	if (!joining || task_field(task, vfork_done))
		return 0;
	leader = task_field(task, group_leader);
	id = adopt(task, leader);
	heap = id ? heap_by_id(id) : 0;
	if (!heap || heap->flags & HEAP_OWNER_GONE)
		return 0;
	thread = thread_of(task);
	if (!thread)
		thread = new_thread(task);
	if (!thread)
		return 0;
	__sync_fetch_and_add(&heap->users, 1);
	__sync_fetch_and_add(&heap->owners, 1);
	thread->pid = heap->pid;
	thread->ppid = heap->ppid;
	thread->image = 0;
	enter_heap(thread, id, false);
	thread_joined(thread, heap, BPF_CORE_READ(task, signal, live.counter) == 1);
	if (!heap->file_count)
		survey_mappings(task, heap, false);
	note_all_files(thread, heap);
	return 1;
}

/* Whether the task is the current one and leads a process with a heap that it has not joined. */
static __always_inline bool may_join(struct task_struct *task)
{
	if (scope == SCOPE_TREE || task_field(task, pid) != task_field(task, tgid) ||
	    (__u64)task != (__u64)current_task())
		return false;
	return heap_of_process(task);
}

/* The current thread, if it has a heap that is counted. */
static __always_inline struct thread *current_thread(void)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task);

	if (thread && thread->heap)
		return thread;
	if (scope == SCOPE_TREE || !join())
		return 0;
	return thread_of(task);
}

/*
 * A child of a process that is chosen, and that is not followed yet, is chosen at its fork. So no
 * child is missed between the listing of children and the moment from which forks are followed.
 * If there is no memory for it, the next listing finds the child.
 */
static __always_inline void choose_child(struct task_struct *child, __u64 clone_flags)
{
	if (scope != SCOPE_CHOSEN || no_children || clone_flags & CLONE_THREAD)
		return;
	if (is_chosen(task_field(current_task(), group_leader)))
		choose_process(child);
}

/*
 * Whether a process is chosen. A running child of a chosen process is chosen here, unless it is
 * followed already. memleak may be a child of a process that was named.
 */
static __always_inline bool choose_descendant(struct task_struct *leader)
{
	if (is_chosen(leader))
		return true;
	if (leader->tgid == memleak_tgid || leader->flags & PF_KTHREAD ||
	    !BPF_CORE_READ(leader, signal, live.counter) || thread_of(leader))
		return false;
	return is_chosen(leader->real_parent->group_leader) && choose_process(leader);
}

/* Gives a wanted running process its heap, before any of its threads has joined. */
static __always_inline void adopt_running(struct task_struct *leader)
{
	struct heap *heap;
	__u64 id;

	if (!leader || leader->pid != leader->tgid)
		return;
	/* An ended process has reported its end already, or was not followed until then. */
	if (!BPF_CORE_READ(leader, signal, live.counter) || thread_of(leader))
		return;
	if (heap_of_process(leader))
		return;
	id = adopt(leader, leader);
	heap = id ? heap_by_id(id) : 0;
	if (heap)
		survey_mappings(leader, heap, false);
}

#endif
