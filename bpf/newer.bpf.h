/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What only newer kernels (6.1) have. older.bpf.h has stand-ins under the same names. */
#ifndef MEMLEAK_NEWER_H
#define MEMLEAK_NEWER_H

#include "core.h"
#include "inode.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/*
 * Lives and dies with the task. It has no key, so no pid that could be reused or belong to a
 * namespace.
 */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

/* A process that was running before it was followed. Its threads join its heap one by one. */
struct process {
	__u64 heap; /* id of its heap; 0: none yet */
	__u32 chosen;
	__u32 pad;
};

/* Kept by the leader of the process. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct process);
} processes SEC(".maps");

/*
 * Live bytes of heaps that several tasks use, by the heap's id. A cell is found faster than the
 * heap. A heap whose cell is taken keeps its live bytes in itself.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LIVE_CELLS);
	__type(key, __u32);
	__type(value, struct live_cell);
} live_cells SEC(".maps");

const volatile bool tail_calls = false; /* never set */

/*
 * Keeps a program on the task's stack.
 * Since 6.13 the kernel may give a program at a probe a stack of its CPU in place of the task's. It
 * does so if the program, or a function of it, needs 64 B of stack or more ("private stack",
 * BPF_PRIV_STACK_MIN_SIZE in kernel/bpf/verifier.c). Such programs must not interrupt each other,
 * and the kernel does not ensure this for programs at uprobes. Where the kernel may be preempted,
 * two threads in turn overwrite each other's frames.
 * A program with a tail call gets no private stack, even if the call is never reached. So the call
 * need not be possible. A possible one would need a map that takes programs, which not all programs
 * may use.
 */
static __always_inline void use_task_stack(void *ctx)
{
	if (tail_calls)
		bpf_tail_call(ctx, &sites, 0);
}

/* The section of a program at many entries. */
#define ENTRY_SECTION "uprobe.multi"

/* A function that is verified once, and not at each place that calls it. */
#define SUBPROGRAM __noinline

/* A field of the current task. */
#define task_field(task, field) ((task)->field)

static __always_inline struct task_struct *current_task(void)
{
	return bpf_get_current_task_btf();
}

/* The cookie of the probe that runs. */
static __always_inline __u64 probe_cookie(void *ctx)
{
	return bpf_get_attach_cookie(ctx);
}

/* Where the stack of a task is that has entered the kernel. */
static __always_inline __u64 user_stack_pointer(struct task_struct *task)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);

	return BPF_CORE_READ(regs, sp);
}

static __always_inline void set_flags(struct heap *heap, __u32 flags)
{
	__sync_fetch_and_or(&heap->flags, flags);
}

static __always_inline void clear_flags(struct heap *heap, __u32 flags)
{
	__sync_fetch_and_and(&heap->flags, ~flags);
}

static long identify_mapping(struct task_struct *task, struct vm_area_struct *vma,
			     struct arrival *arrival)
{
	struct file *file = BPF_CORE_READ(vma, vm_file);

	if (file)
		identify_inode(BPF_CORE_READ(file, f_inode), arrival);
	return 0;
}

/* Identifies the file that the current process has mapped at an address. Returns 0, or an error. */
static __always_inline long identify_at(__u64 address, struct arrival *found)
{
	return bpf_find_vma(bpf_get_current_task_btf(), address, identify_mapping, found, 0);
}

static __always_inline __u64 next_heap_id(void)
{
	return __sync_fetch_and_add(&last_heap, 1) + 1;
}

static __always_inline bool append_file(struct heap *heap, __u32 file)
{
	__u32 at = __sync_fetch_and_add(&heap->file_count, 1);

	if (at < HEAP_FILES)
		heap->files[at] = file;
	return true;
}

/* The record of a task; 0 if it is not followed. */
static __always_inline struct thread *thread_of(struct task_struct *task)
{
	struct thread *thread = bpf_task_storage_get(&threads, task, 0, 0);
	__u64 key = (__u64)task;

	if (!thread && late_count)
		thread = bpf_map_lookup_elem(&late_threads, &key);
	return thread;
}

/* Creates the record in the storage of a task that is to be followed; 0 if that fails. */
static __always_inline struct thread *make_thread(struct task_struct *task)
{
	if (all_late)
		return 0;
	return bpf_task_storage_get(&threads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static __always_inline void drop_thread(struct task_struct *task)
{
	bpf_task_storage_delete(&threads, task);
}

static __always_inline struct live_cell *live_cell_of(__u64 heap)
{
	__u32 index = heap & (LIVE_CELLS - 1);

	return bpf_map_lookup_elem(&live_cells, &index);
}

/*
 * Moves a heap's live bytes, and their peak, to where several tasks share them. A heap with one
 * task keeps them in that task: no other task writes there. A heap with several tasks keeps them in
 * its cell, if that is free. Then the peak depends on the order in which the updates arrive.
 */
static __noinline void share_live(struct heap *heap, struct live *live)
{
	struct live_cell *cell = live_cell_of(heap->id);

	if (cell && !__sync_val_compare_and_swap(&cell->heap, 0, heap->id)) {
		cell->live = *live;
		cell->lonely = 0;
	} else {
		heap->live = *live;
	}
}

/* Takes a heap's live bytes back from where they were shared. */
static __noinline void unshare_live(struct heap *heap, struct live *live)
{
	struct live_cell *cell = live_cell_of(heap->id);

	if (cell && cell->heap == heap->id) {
		*live = cell->live;
		__sync_val_compare_and_swap(&cell->heap, heap->id, 0);
	} else {
		*live = heap->live;
	}
}

/* Where a thread shares its heap's live bytes; 0 if it is the heap's only thread. */
static __always_inline struct live *shared_live(struct thread *thread)
{
	struct live_cell *cell;
	struct heap *heap;

	if (thread->sole)
		return 0;
	cell = live_cell_of(thread->heap);
	if (!cell)
		return 0;
	if (cell->heap == thread->heap && !cell->lonely)
		return &cell->live;
	heap = heap_by_id(thread->heap);
	if (!heap)
		return 0;
	if (heap->users == 1) {
		/* The other tasks have left, and only this task could start new ones. */
		unshare_live(heap, &thread->live);
		thread->sole = 1;
		return 0;
	}
	if (cell->heap != thread->heap)
		return &heap->live;
	cell->lonely = 0;
	return &cell->live;
}

/* A peak that is to be raised. */
struct raise {
	struct live *shared;
	__s64 live;
	__u64 peak; /* as it was last seen */
};

static long raise_once(__u32 round, struct raise *raise)
{
	__u64 seen;

	if (raise->live <= (__s64)raise->peak)
		return 1;
	seen = __sync_val_compare_and_swap(&raise->shared->peak, raise->peak, raise->live);
	if (seen == raise->peak)
		return 1;
	raise->peak = seen;
	return 0;
}

/*
 * Raises the peak of what several threads share. Each failed exchange means that another thread
 * raised the peak meanwhile.
 */
SUBPROGRAM int raise_peak(struct live *shared, __s64 live)
{
	struct raise raise = {.shared = shared, .live = live};

	if (!shared)
		return 0;
	raise.peak = shared->peak;
	bpf_loop(64, raise_once, &raise, 0);
	return 0;
}

static __always_inline void live_grows(struct thread *thread, __u64 size)
{
	struct live *shared = shared_live(thread);
	__s64 live;

	if (!shared) {
		thread->live.bytes += size;
		if (thread->live.bytes > thread->live.peak)
			thread->live.peak = thread->live.bytes;
		return;
	}
	live = __sync_fetch_and_add(&shared->bytes, size) + size;
	if (live > (__s64)shared->peak)
		raise_peak(shared, live);
}

static __always_inline void live_shrinks(struct thread *thread, __u64 size)
{
	struct live *shared = shared_live(thread);

	if (shared)
		__sync_fetch_and_add(&shared->bytes, -size);
	else
		thread->live.bytes -= size;
}

/* A heap with one task is about to get more users. */
static __always_inline void share_heap(struct heap *heap, struct live *live)
{
	share_live(heap, live);
}

/* A task leaves its heap, and takes `leaving` users with it. Returns whether no user is left. */
static __always_inline bool is_last_user(struct thread *thread, struct heap *heap, __u32 leaving)
{
	struct live_cell *cell;
	__u64 id = heap->id;
	__u32 users = __sync_fetch_and_add(&heap->users, -leaving) - leaving;

	if (users) {
		cell = live_cell_of(id);
		/* A hint: the task that is left checks whether it is alone. */
		if (users == 1 && cell && cell->heap == id)
			cell->lonely = 1;
		return false;
	}
	if (thread->sole)
		heap->live = thread->live;
	else
		unshare_live(heap, &heap->live);
	return true;
}

/* The same for the owners. */
static __always_inline bool is_last_owner(struct thread *thread, struct heap *heap, __u32 leaving)
{
	return __sync_fetch_and_add(&heap->owners, -leaving) == leaving;
}

static __always_inline struct process *process_of(struct task_struct *leader)
{
	return bpf_task_storage_get(&processes, leader, 0, 0);
}

/* Whether the process is one of those that were named, or was started by one of them. */
static __always_inline bool is_chosen(struct task_struct *leader)
{
	struct process *process = process_of(leader);

	return process && process->chosen;
}

/* Chooses a process. Returns false if there is no memory for that. */
static __always_inline bool choose_process(struct task_struct *leader)
{
	struct process *process;

	process = bpf_task_storage_get(&processes, leader, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!process)
		return false;
	process->chosen = 1;
	return true;
}

/* The heap that a process has been given; 0: none. */
static __always_inline __u64 heap_of_process(struct task_struct *leader)
{
	struct process *process = process_of(leader);

	return process ? process->heap : 0;
}

/*
 * Gives a process its heap. Returns the heap that it has now: another thread may have been faster.
 * Returns 0 if it has none.
 */
static __always_inline __u64 claim_process(struct task_struct *leader, __u64 heap)
{
	struct process *process;
	__u64 first;

	process = bpf_task_storage_get(&processes, leader, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!process)
		return 0;
	first = __sync_val_compare_and_swap(&process->heap, 0, heap);
	return first ? first : heap;
}

/* A new heap of a running process is about to be visible to other tasks. */
static __always_inline void expect_joins(struct heap *heap, struct task_struct *leader)
{
}

/* Drops a heap that was never published. */
static __always_inline void drop_heap(__u64 id)
{
	bpf_map_delete_elem(&heaps, &id);
}

/*
 * A thread has joined its process's heap. `alone`: it is the only thread, and only itself could
 * start another one.
 */
static __always_inline void thread_joined(struct thread *thread, struct heap *heap, bool alone)
{
	if (!alone)
		return;
	unshare_live(heap, &thread->live);
	thread->sole = 1;
}

/*
 * The process stops being a user of its heap. Returns how many users that were beside its threads:
 * 1 if the process was running before memleak followed it, and this is its end. If several tasks
 * see the end, one of them gets the 1.
 */
static __always_inline __u32 release_process_user(struct heap *heap)
{
	if (!(heap->flags & HEAP_PROCESS))
		return 0;
	return !!(__sync_fetch_and_and(&heap->flags, ~HEAP_PROCESS) & HEAP_PROCESS);
}

/* The heap does not belong to the process any more. */
static __always_inline void forget_process(struct task_struct *leader)
{
	struct process *process = 0;

	if (scope != SCOPE_TREE)
		process = process_of(leader);
	if (process)
		process->heap = 0;
}

#endif
