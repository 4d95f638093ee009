/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which task uses which heap: forks, execs and exits of the followed tasks. */
#ifndef MEMLEAK_LIFECYCLE_H
#define MEMLEAK_LIFECYCLE_H

#include "args.bpf.h"
#include "calls.bpf.h"
#include "core.h"
#include "exe.bpf.h"
#include "heap.bpf.h"
#include "join.bpf.h"
#include "kernels.bpf.h"
#include "labels.bpf.h"
#include "loading.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "pids.bpf.h"
#include "wanted.bpf.h"

/* The status that wait(2) will report for the process (wait_task_zombie in kernel/exit.c). */
static __always_inline __u32 wait_status(struct task_struct *task)
{
	if (BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		return BPF_CORE_READ(task, signal, group_exit_code);
	return BPF_CORE_READ(task, group_leader, exit_code);
}

/* The current thread, even if it has not executed anything yet. */
static __always_inline struct thread *current_or_launched(void)
{
	if (scope == SCOPE_TREE)
		return thread_of(current_task());
	return current_thread();
}

/*
 * If a signal handler that interrupted an allocator forks, the child, too, returns from that call.
 * A global function is verified once, and not for each way that leads to it.
 */
SUBPROGRAM int inherit_calls(struct thread *child, struct thread *parent)
{
	int i;

	if (!child || !parent)
		return 0;
	__builtin_memcpy(child->open, parent->open, sizeof(child->open));
	child->depth = parent->depth;
	/* The block that a realloc is about to replace was never in the child's heap. */
	for (i = 0; i < MAX_OPEN; i++) {
		if (child->open[i].old == OLD_RECORDED)
			child->open[i].old = OLD_UNRECORDED;
	}
	return 0;
}

/*
 * Forks, execs and exits may be handled `again`, in case the first program was not called (see
 * again.bpf.h). An event that was handled already does nothing.
 */
static __always_inline void forked(struct task_struct *child, __u64 clone_flags, bool again)
{
	struct thread *parent = current_or_launched(), *thread;
	struct heap *heap, *fresh;
	__u32 length;

	if (!parent)
		choose_child(child, clone_flags);
	if (!parent || (no_children && !(clone_flags & CLONE_VM)))
		return;
	if (again && thread_of(child))
		return;
	thread = new_thread(child);
	if (!thread) {
		__sync_fetch_and_add(&rows_lost, 1);
		return;
	}
	if (again)
		__sync_fetch_and_add(&retold[TASK_FORKED], 1);
	heap = heap_by_id(parent->heap);
	if (clone_flags & CLONE_VM) {
		if (heap) {
			__sync_fetch_and_add(&heap->users, 1);
			if (clone_flags & CLONE_THREAD && !parent->borrowed)
				__sync_fetch_and_add(&heap->owners, 1);
			else if (pid_filter)
				set_flags(heap, HEAP_UNREACHED);
			if (parent->sole) {
				share_heap(heap, &parent->live);
				parent->sole = 0;
			}
		}
		enter_heap(thread, parent->heap, false);
		thread->files = parent->files;
	}
	if (clone_flags & CLONE_THREAD) {
		thread->borrowed = parent->borrowed;
		thread->image = parent->image;
		thread->pid = parent->pid;
		thread->ppid = parent->ppid;
		return;
	}
	thread->pid = own_pid_of(child);
	thread->ppid = own_pid_of(BPF_CORE_READ(child, real_parent, group_leader));
	thread->image = 0;
	if (clone_flags & CLONE_VM) {
		thread->borrowed = 1;
		return;
	}
	enter_heap(thread, 0, true);
	fresh = new_heap();
	if (!fresh)
		return;
	fresh->pid = thread->pid;
	fresh->ppid = thread->ppid;
	fresh->flags = HEAP_FORKED;
	if (heap) {
		fresh->file_count = heap->file_count;
		__builtin_memcpy(fresh->files, heap->files, sizeof(fresh->files));
		/* The child has the same files mapped as its parent. */
		fresh->flags |= heap->flags & (HEAP_EXE_RELATIVE | HEAP_LATE | HEAP_UNHELD |
					       HEAP_UNEXAMINED | HEAP_NO_SYMBOLS | HEAP_32BIT);
		length = heap->exe_len;
		if (length <= sizeof(fresh->exe) &&
		    !bpf_probe_read_kernel(fresh->exe, length, heap->exe))
			fresh->exe_len = length;
		inherit_args(heap->id, fresh->id);
		inherit_labels(heap->id, fresh->id);
		inherit_inside(fresh, heap);
	}
	start_heap(fresh);
	thread->heap = fresh->id;
	thread->files = parent->files;
	if (parent->depth)
		inherit_calls(thread, parent);
}

/*
 * The address of the thread whose exec ends this one; 0 if none does. The leader ends so, too, if
 * another thread executes. Then the process's image ends with the leader.
 */
static __always_inline __u64 successor_of(struct task_struct *task)
{
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct signal_struct___exit *before = (void *)signal;

	if (BPF_CORE_READ(signal, flags) & SIGNAL_GROUP_EXIT)
		return 0;
	if (bpf_core_field_exists(signal->group_exec_task))
		return (__u64)BPF_CORE_READ(signal, group_exec_task);
	return (__u64)BPF_CORE_READ(before, group_exit_task);
}

/* The number of the image that the task is about to begin, if it is in `successors`; else 0. */
static __always_inline __u32 take_inherited_image(struct task_struct *task)
{
	__u64 key = (__u64)task;
	__u32 *image = successor_count ? bpf_map_lookup_elem(&successors, &key) : 0;
	__u32 number = image ? *image : 0;

	if (image)
		bpf_map_delete_elem(&successors, &key);
	return number;
}

static __always_inline void record_successor(__u64 successor, __u32 image)
{
	if (!bpf_map_update_elem(&successors, &successor, &image, BPF_ANY))
		__sync_fetch_and_add(&successor_count, 1);
}

/*
 * The task is alone in its process: it may have been any thread of it, with the id `old_pid`, and
 * is the leader now. A failed exec does not get here. That is so even if the exec has destroyed the
 * old memory, which ends the process.
 */
static __always_inline void executed(struct task_struct *task, int old_pid,
				     struct linux_binprm *bprm, bool again)
{
	struct thread *thread = thread_of(task);
	__u64 exec_id = BPF_CORE_READ(task, self_exec_id);
	struct heap *heap, *fresh;
	__u32 leaving = 1, inherited = take_inherited_image(task);
	bool followed;

	if (again && thread && thread->exec_id == exec_id)
		return;
	if (scope == SCOPE_ALL)
		followed = is_wanted(task, task);
	else
		followed = thread ? !(no_children && thread->borrowed) : inherited;
	forget_process(task);
	if (!thread && followed) {
		thread = new_thread(task);
		if (thread)
			thread->image = inherited;
	}
	if (!thread)
		return;
	thread->exec_id = exec_id;
	if (pid_filter && old_pid != task->pid)
		thread->unreached = 1;
	if (again)
		__sync_fetch_and_add(&retold[TASK_EXECUTED], 1);
	heap = heap_by_id(thread->heap);
	if (heap) {
		if (!thread->borrowed) {
			/* The kernel has renamed the task already. */
			if (!(heap->flags & HEAP_LEADER_GONE))
				__builtin_memcpy(heap->comm, thread->old_comm, COMM_LEN);
			owner_leaves(task, heap, HEAP_EXEC);
			leaving += release_process_user(heap);
			thread->image++;
		}
		leave_heap(thread, heap, leaving, false);
	}
	if (!followed) {
		drop_thread(task);
		forget_thread(task);
		return;
	}
	enter_heap(thread, 0, true);
	fresh = new_heap();
	if (!fresh)
		return;
	if (!thread->pid) {
		/* Its fork was not seen. */
		thread->pid = own_pid_of(task);
		thread->ppid = own_pid_of(BPF_CORE_READ(task, real_parent, group_leader));
	}
	fresh->pid = thread->pid;
	fresh->ppid = thread->ppid;
	fresh->image = thread->image;
	name_exe(fresh, bprm);
	if (thread->unreached)
		fresh->flags |= HEAP_UNREACHED;
	if (begins_in_loader())
		fresh->flags |= HEAP_LOADING;
	record_args(task, fresh->id);
	record_labels(task, fresh->id);
	start_heap(fresh);
	thread->heap = fresh->id;
}

/*
 * Whether a task that exits is the last of its process, so that the process's exit status is known.
 * The leader's exit code is final once the leader has been here.
 */
static __always_inline bool is_end_of_process(struct task_struct *task, struct heap *heap)
{
	if (BPF_CORE_READ(task, signal, live.counter))
		return task->pid == task->tgid && successor_of(task);
	return task->pid == task->tgid || heap->flags & HEAP_LEADER_GONE ||
	       BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT ||
	       BPF_CORE_READ(task, group_leader, exit_state);
}

/* Whether other threads of an exiting leader's process go on. */
static __always_inline bool has_survivors(struct task_struct *leader)
{
	return BPF_CORE_READ(leader, signal, live.counter) &&
	       !(BPF_CORE_READ(leader, signal, flags) & SIGNAL_GROUP_EXIT) && !successor_of(leader);
}

/*
 * The thread that exits. It joins its process's heap if it has to report the heap's end, even if it
 * has never used it.
 */
static __always_inline struct thread *exiting_thread(struct task_struct *task)
{
	struct thread *thread = thread_of(task);

	if (scope == SCOPE_TREE || (thread && thread->heap))
		return thread;
	if (task->pid != task->tgid && BPF_CORE_READ(task, signal, live.counter))
		return thread;
	return join() ? thread_of(task) : thread;
}

static __always_inline void exited(struct task_struct *task, bool again)
{
	struct thread *thread = again ? thread_of(task) : exiting_thread(task);
	__u64 successor = 0;
	__u32 leaving = 1;
	struct heap *heap;

	/* Threads of memleak come and go, but a group exit is its end. */
	if (task->tgid == memleak_tgid && BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		nobody_answers = 1;
	/*
	 * Drops the entry of a task whose exec failed too late for it to go on. Another task may
	 * get its address.
	 */
	take_inherited_image(task);
	if (!thread || (again && thread->exited))
		return;
	thread->exited = 1;
	if (again)
		__sync_fetch_and_add(&retold[TASK_EXITED], 1);
	heap = heap_by_id(thread->heap);
	if (!heap)
		goto out;
	count_unwound(thread);
	if (!thread->borrowed) {
		/* In other heaps, the thread that executes is an owner, and reports the exec. */
		if (heap->flags & HEAP_ATTACHED)
			successor = successor_of(task);
		if (successor)
			record_successor(successor, thread->image + 1);
		if (task->pid == task->tgid) {
			bpf_core_read(heap->comm, COMM_LEN, &task->comm);
			heap->leader_sp = user_stack_pointer(task);
			set_flags(heap, HEAP_LEADER_GONE);
			if (pid_filter && has_survivors(task))
				set_flags(heap, HEAP_UNREACHED);
		}
		if (heap->flags & HEAP_PROCESS && is_end_of_process(task, heap))
			leaving += release_process_user(heap);
		/* Only the last owner knows for certain how the process ends. */
		if (is_last_owner(thread, heap, leaving)) {
			heap->status = wait_status(task);
			owner_leaves(task, heap, successor ? HEAP_EXEC : 0);
		}
	}
	leave_heap(thread, heap, leaving, true);
out:
	forget_thread(task);
}

static __always_inline void renamed(struct task_struct *task)
{
	struct thread *thread = thread_of(task);

	/* An exec may have renamed it, before the kernel has released the old image. */
	if (!thread && may_join(task) && join())
		thread = thread_of(task);
	if (thread)
		bpf_core_read(thread->old_comm, COMM_LEN, &task->comm);
}

#endif
