/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who runs in which heap: forks, execs and ends of the followed tasks, and the record of a heap on
 * its way to user space.
 */
#ifndef MEMLEAK_LIFECYCLE_H
#define MEMLEAK_LIFECYCLE_H

#include "alloc.bpf.h"

/* Directories that a relative path may lie deep and still be made absolute. */
#define MAX_DIRECTORIES 48

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

/* A task that is not followed any more. Last: where none is, every row is on its way. */
static __always_inline void thread_gone(struct task_struct *task)
{
	__u64 key = (__u64)task;

	if (late_count)
		bpf_map_delete_elem(&late_threads, &key);
	__sync_fetch_and_add(&living_tasks, -1);
}

/* The process id as memleak sees it; 0 where the process is not in memleak's pid namespace. */
static __always_inline __u32 own_pid_of(struct task_struct *leader)
{
	struct pid *pid = BPF_CORE_READ(leader, thread_pid);
	struct upid upid = {};

	if (!pid || BPF_CORE_READ(pid, level) < own_level)
		return 0;
	bpf_core_read(&upid.nr, sizeof(upid.nr), &pid->numbers[own_level].nr);
	bpf_core_read(&upid.ns, sizeof(upid.ns), &pid->numbers[own_level].ns);
	return upid.ns == own_ns ? upid.nr : 0;
}

/* The id of a task as /proc has it, where memleak looks at it. */
static __always_inline __u32 proc_pid_of(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 nr = 0;

	if (pid && BPF_CORE_READ(pid, level) >= proc_level)
		bpf_core_read(&nr, sizeof(nr), &pid->numbers[proc_level].nr);
	return nr;
}

/*
 * A new heap, in the map already; nothing if it cannot be followed. It is put together in its
 * place: it is too large for the stack, and whoever is preempted has no room to himself.
 */
static __always_inline struct heap *new_heap(void)
{
	__u64 id = next_heap();
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

/* It is ready, and has one user. Who walks the map takes one without users for one that is not
 * there yet.
 */
static __always_inline void start_heap(struct heap *heap)
{
	heap->owners = 1;
	barrier();
	heap->users = 1;
}

/* Gives a thread its heap and sets its own counters to nothing. */
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

/* The row is on its way, or waits in the map until user space asks for it. */
static __always_inline void heap_ended(struct heap *heap)
{
	__u64 id = heap->id, taken = heap->sum.free_count - heap->lost_freed;
	__u32 size = heap->exe_len;

	__sync_fetch_and_add(&dead_blocks, heap->sum.alloc_count - heap->lost_blocks - taken);
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
 * A process leaves its heap: by its last thread's exit, or by an exec. What shares the heap
 * (CLONE_VM) may live on, and the row waits for that, but the end that it tells is this one.
 */
static __always_inline void owner_leaves(struct task_struct *task, struct heap *heap, __u32 flags)
{
	heap->end_ns = bpf_ktime_get_ns();
	heap->uid = BPF_CORE_READ(task, real_cred, uid.val);
	if (is_outside(task))
		flags |= HEAP_OUTSIDE;
	/* After the rest: user space may look at any time. */
	set_flags(heap, flags | HEAP_OWNER_GONE);
}

/*
 * A task leaves its heap for good, as so many users of it. Its sums go to the heap; the last one
 * out ends it.
 */
static __always_inline void leave_heap(struct thread *thread, struct heap *heap, __u32 leaving)
{
	__sync_fetch_and_add(&heap->sum.alloc_bytes, thread->sum.alloc_bytes);
	__sync_fetch_and_add(&heap->sum.alloc_count, thread->sum.alloc_count);
	__sync_fetch_and_add(&heap->sum.free_bytes, thread->sum.free_bytes);
	__sync_fetch_and_add(&heap->sum.free_count, thread->sum.free_count);
	__sync_fetch_and_add(&heap->sum.failed_allocs, thread->sum.failed_allocs);
	__sync_fetch_and_add(&heap->sum.unknown_frees, thread->sum.unknown_frees);
	__sync_fetch_and_add(&heap->sum.lost_calls, thread->sum.lost_calls);
	thread->heap = 0;
	if (is_last_user(thread, heap, leaving))
		heap_ended(heap);
}

/* What wait(2) will tell of the process (wait_task_zombie in kernel/exit.c). */
static __always_inline __u32 wait_status(struct task_struct *task)
{
	if (BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		return BPF_CORE_READ(task, signal, group_exit_code);
	return BPF_CORE_READ(task, group_leader, exit_code);
}

/* The current thread, though it may not have executed anything yet. */
static __always_inline struct thread *current_or_launched(void)
{
	if (scope == SCOPE_TREE)
		return thread_of(current_task());
	return current_thread();
}

/*
 * What the kernel tells of forks, execs and ends may be told `again`, in case that it was missed
 * (see again.bpf.h): who was told already does nothing.
 */
static __always_inline void forked(struct task_struct *child, __u64 clone_flags, bool again)
{
	struct thread *parent = current_or_launched(), *thread;
	struct heap *heap, *fresh;
	__u32 length;
	int i;

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
	if (heap) {
		fresh->file_count = heap->file_count;
		__builtin_memcpy(fresh->files, heap->files, sizeof(fresh->files));
		/* What its parent has mapped, it has too. */
		fresh->flags = heap->flags & (HEAP_EXE_RELATIVE | HEAP_LATE | HEAP_UNHELD |
					      HEAP_UNEXAMINED | HEAP_NO_SYMBOLS | HEAP_32BIT);
		length = heap->exe_len;
		if (length <= sizeof(fresh->exe) &&
		    !bpf_probe_read_kernel(fresh->exe, length, heap->exe))
			fresh->exe_len = length;
	}
	start_heap(fresh);
	thread->heap = fresh->id;
	thread->files = parent->files;
	/* A fork in a signal handler inside an allocator: the child, too, returns from that call.
	 */
	if (parent->depth) {
		__builtin_memcpy(thread->open, parent->open, sizeof(thread->open));
		thread->depth = parent->depth;
		/* The block that a realloc is about to replace was never one of the child's heap.
		 */
		for (i = 0; i < MAX_OPEN; i++) {
			if (thread->open[i].old == OLD_RECORDED)
				thread->open[i].old = OLD_UNRECORDED;
		}
	}
}

/* Appends a name and its NUL to heap->exe. False if there is no room, or nothing to read. */
static __always_inline bool append_name(struct heap *heap, const void *name)
{
	__u32 used = heap->exe_len;
	long length;

	if (used >= EXE_LEN)
		return false;
	length = bpf_probe_read_kernel_str(heap->exe + used, NAME_LEN, name);
	if (length <= 0)
		return false;
	heap->exe_len = used + length;
	return true;
}

/* A place in the file system on the way up to the process's root. */
struct walk {
	struct dentry *dentry, *root_dentry;
	struct vfsmount *mnt, *root_mnt;
};

/* A step up: appends a directory's name, or crosses a mount. Returns 1 at the root, -1 if lost. */
FUNCTION int step_up(struct heap *heap, struct walk *walk)
{
	struct dentry *dentry, *parent;
	struct mount *mount, *above;
	struct vfsmount *mnt;

	if (!heap || !walk)
		return -1;
	dentry = walk->dentry;
	mnt = walk->mnt;
	if (dentry == walk->root_dentry && mnt == walk->root_mnt)
		return 1;
	parent = BPF_CORE_READ(dentry, d_parent);
	if (dentry != BPF_CORE_READ(mnt, mnt_root) && dentry != parent) {
		/* Removed: nothing has this path any more, or something else has. */
		if (!BPF_CORE_READ(dentry, d_hash.pprev))
			return -1;
		walk->dentry = parent;
		return append_name(heap, BPF_CORE_READ(dentry, d_name.name)) ? 0 : -1;
	}
	mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
	above = BPF_CORE_READ(mount, mnt_parent);
	/* The top, but not the process's root: outside of that, or of a file system detached. */
	if (above == mount)
		return -1;
	walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
	walk->mnt = (void *)above + bpf_core_field_offset(struct mount, mnt);
	return 0;
}

/* Appends the names on the way up to the root. Where that cannot be reached, the path is unknown.
 */
FUNCTION int walk_up(struct heap *heap, struct walk *walk)
{
	int i, found = 0;

	if (!heap || !walk)
		return 0;
	for (i = 0; i < MAX_DIRECTORIES && !found; i++)
		found = step_up(heap, walk);
	if (found <= 0)
		heap->exe_len = 0;
	return 0;
}

/*
 * The path given to execve. Behind a relative one follow the names of the directories it is
 * relative to, innermost first, as far as the process's root.
 */
static __always_inline void name_exe(struct heap *heap, struct linux_binprm *bprm)
{
	struct task_struct *task = current_task();
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct walk walk = {};
	long length;

	length = bpf_probe_read_kernel_str(heap->exe, EXE_LEN, BPF_CORE_READ(bprm, filename));
	/* One that fills the buffer has probably been cut. */
	if (length <= 1 || length >= EXE_LEN)
		return;
	heap->exe_len = length;
	if (heap->exe[0] == '/')
		return;
	heap->flags |= HEAP_EXE_RELATIVE;
	walk.dentry = BPF_CORE_READ(fs, pwd.dentry);
	walk.mnt = BPF_CORE_READ(fs, pwd.mnt);
	walk.root_dentry = BPF_CORE_READ(fs, root.dentry);
	walk.root_mnt = BPF_CORE_READ(fs, root.mnt);
	walk_up(heap, &walk);
}

/*
 * The thread, by its address, whose exec is what ends this one; 0 if none is. The leader, too, ends
 * so where it is not the one that executes, and the process's image with it.
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

/* Which image of its process the task is about to begin, if it is one of `successors`; else 0. */
static __always_inline __u32 inherited_image(struct task_struct *task)
{
	__u64 key = (__u64)task;
	__u32 *image = successor_count ? bpf_map_lookup_elem(&successors, &key) : 0;
	__u32 number = image ? *image : 0;

	if (image)
		bpf_map_delete_elem(&successors, &key);
	return number;
}

static __always_inline void hand_over(__u64 successor, __u32 image)
{
	if (!bpf_map_update_elem(&successors, &successor, &image, BPF_ANY))
		__sync_fetch_and_add(&successor_count, 1);
}

/*
 * The task is alone in its process: it may have been any thread of it, and is the leader now. A
 * failed exec does not get here, not even one that has cost the process its old memory and ends it.
 */
static __always_inline void executed(struct task_struct *task, struct linux_binprm *bprm,
				     bool again)
{
	struct thread *thread = thread_of(task);
	__u64 exec_id = BPF_CORE_READ(task, self_exec_id);
	struct heap *heap, *fresh;
	__u32 leaving = 1, inherited = inherited_image(task);
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
	if (again)
		__sync_fetch_and_add(&retold[TASK_EXECUTED], 1);
	heap = heap_by_id(thread->heap);
	if (heap) {
		if (!thread->borrowed) {
			/* The kernel has renamed the task already. */
			if (!(heap->flags & HEAP_LEADER_GONE))
				__builtin_memcpy(heap->comm, thread->old_comm, COMM_LEN);
			owner_leaves(task, heap, HEAP_EXEC);
			leaving += process_leaves(heap);
			thread->image++;
		}
		leave_heap(thread, heap, leaving);
	}
	if (!followed) {
		drop_thread(task);
		thread_gone(task);
		return;
	}
	enter_heap(thread, 0, true);
	fresh = new_heap();
	if (!fresh)
		return;
	if (!thread->pid) {
		/* Nobody has seen its fork. */
		thread->pid = own_pid_of(task);
		thread->ppid = own_pid_of(BPF_CORE_READ(task, real_parent, group_leader));
	}
	fresh->pid = thread->pid;
	fresh->ppid = thread->ppid;
	fresh->image = thread->image;
	name_exe(fresh, bprm);
	start_heap(fresh);
	thread->heap = fresh->id;
}

/*
 * Whether a task that exits is the last of its process, and knows how that ends: its leader's exit
 * code stands once the leader has been here.
 */
static __always_inline bool is_end_of_process(struct task_struct *task, struct heap *heap)
{
	if (BPF_CORE_READ(task, signal, live.counter))
		return task->pid == task->tgid && successor_of(task);
	return task->pid == task->tgid || heap->flags & HEAP_LEADER_GONE ||
	       BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT ||
	       BPF_CORE_READ(task, group_leader, exit_state);
}

/* A thread that exits, of a heap that it may never have used, but has to tell of. */
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

	/* Its threads come and go, and a group exit is its end. */
	if (task->tgid == keeper && BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		nobody_answers = 1;
	/* Its exec has failed, too late for it to go on: whoever has its address next is another
	 * one. */
	inherited_image(task);
	if (!thread || (again && thread->exited))
		return;
	thread->exited = 1;
	if (again)
		__sync_fetch_and_add(&retold[TASK_EXITED], 1);
	heap = heap_by_id(thread->heap);
	if (!heap)
		goto out;
	close_left(thread);
	if (!thread->borrowed) {
		/* Else the thread that executes is an owner, and tells of it. */
		if (heap->flags & HEAP_ATTACHED)
			successor = successor_of(task);
		if (successor)
			hand_over(successor, thread->image + 1);
		if (task->pid == task->tgid) {
			bpf_core_read(heap->comm, COMM_LEN, &task->comm);
			set_flags(heap, HEAP_LEADER_GONE);
		}
		if (heap->flags & HEAP_PROCESS && is_end_of_process(task, heap))
			leaving += process_leaves(heap);
		/* Only the last of them sees for certain how the process ends. */
		if (is_last_owner(thread, heap, leaving)) {
			heap->status = wait_status(task);
			owner_leaves(task, heap, successor ? HEAP_EXEC : 0);
		}
	}
	leave_heap(thread, heap, leaving);
out:
	thread_gone(task);
}

static __always_inline void renamed(struct task_struct *task)
{
	struct thread *thread = thread_of(task);

	/* By an exec, perhaps, before the kernel has let the old image go altogether. */
	if (!thread && may_join(task) && join())
		thread = thread_of(task);
	if (thread)
		bpf_core_read(thread->old_comm, COMM_LEN, &task->comm);
}

#endif
