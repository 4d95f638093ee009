/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stand-ins for newer.bpf.h, for kernels from 5.8 on that lack what it uses. All threads are in a
 * hash table. No program uses the result of an atomic operation, or an atomic operation other than
 * addition (5.12). Each probe has a program of its own, which contains its cookie as a constant,
 * because cookies exist only since 5.15.
 */
#ifndef MEMLEAK_OLDER_H
#define MEMLEAK_OLDER_H

#include "core.h"
#include "inode.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/* These kernels have no private stacks. */
static __always_inline void use_task_stack(void *ctx)
{
}

/* A program is at one probe only. */
#define ENTRY_SECTION "uprobe"

/* Before 5.12 a function that is verified once cannot take a pointer. */
#define SUBPROGRAM static __noinline

/* A field of the current task, whose address is just a number here (before 5.11). */
#define task_field(task, field) BPF_CORE_READ(task, field)

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

/* The cookie of the probe that runs. User space puts it here before it loads the program. */
static __always_inline __u64 probe_cookie(void *ctx)
{
	__u64 cookie;

	asm volatile("%0 = %1 ll"
		     : "=r"(cookie)
		     : "i"((__u64)PLACEHOLDER_HIGH << 32 | PLACEHOLDER_LOW));
	return cookie;
}

static __always_inline struct thread *thread_of(struct task_struct *task)
{
	__u64 key = (__u64)task;

	return bpf_map_lookup_elem(&late_threads, &key);
}

static __always_inline struct thread *make_thread(struct task_struct *task)
{
	return 0;
}

static __always_inline void drop_thread(struct task_struct *task)
{
}

/* Nobody asks. */
static __always_inline __u64 user_stack_pointer(struct task_struct *task)
{
	return 0;
}

/*
 * Adding a flag sets it, even if other tasks set other flags at the same time, because each flag is
 * set once in a heap's life. Only one task can set it. In a heap that other tasks do not see yet,
 * that is its creator. HEAP_PEAKLESS is set by the only task, before there is a second one.
 * HEAP_LEADER_GONE is set by the leader, HEAP_OWNER_GONE and HEAP_EXEC by the last owner, and
 * HEAP_ENDED by the last user.
 */
static __always_inline void set_flags(struct heap *heap, __u32 flags)
{
	__sync_fetch_and_add(&heap->flags, flags);
}

/* A flag that is set is cleared by the task that has set it. */
static __always_inline void clear_flags(struct heap *heap, __u32 flags)
{
	__sync_fetch_and_add(&heap->flags, -flags);
}

/*
 * A tree of mappings is not deeper: twice the logarithm of the number of mappings that a process
 * may have.
 */
#define MAX_DEPTH 64

/* Identifies the file that the current process has mapped at an address. Returns 0, or an error. */
static __always_inline long identify_at(__u64 address, struct arrival *found)
{
	struct mm_struct___tree *mm = (void *)BPF_CORE_READ(current_task(), mm);
	struct vm_area_struct *vma;
	struct rb_node *node;
	struct file *file;
	int i;

	/* A newer kernel, on which these programs are tested. */
	if (!bpf_core_field_exists(mm->mm_rb))
		return -ENOENT;
	node = BPF_CORE_READ(mm, mm_rb.rb_node);
	for (i = 0; i < MAX_DEPTH && node; i++) {
		vma = (void *)node - bpf_core_field_offset(struct vm_area_struct___tree, vm_rb);
		if (address < BPF_CORE_READ(vma, vm_start)) {
			node = BPF_CORE_READ(node, rb_left);
		} else if (address >= BPF_CORE_READ(vma, vm_end)) {
			node = BPF_CORE_READ(node, rb_right);
		} else {
			file = BPF_CORE_READ(vma, vm_file);
			if (!file)
				return -ENOENT;
			identify_inode(BPF_CORE_READ(file, f_inode), found);
			return 0;
		}
	}
	return -ENOENT;
}

/* How many heaps were begun on each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heaps_begun SEC(".maps");

/* More CPUs than Linux supports (NR_CPUS of x86_64 is 8192). */
#define CPU_BITS 16

/*
 * Heaps are begun in tracepoints. These are not preempted, and do not nest in one that begins a
 * heap.
 */
static __always_inline __u64 next_heap_id(void)
{
	__u32 zero = 0;
	__u64 *begun = bpf_map_lookup_elem(&heaps_begun, &zero);

	if (!begun)
		return 0;
	(*begun)++;
	return *begun << CPU_BITS | bpf_get_smp_processor_id();
}

/*
 * Something that exactly one of several tasks may get: deleting an entry succeeds for one of them.
 * A heap gets LAST_USER and LAST_OWNER with its second task, and loses them when it ends. FILES
 * exists while a task appends a file. PROCESS belongs to a process that was running before it was
 * followed.
 */
enum token { LAST_USER, LAST_OWNER, FILES, PROCESS };

struct token_key {
	__u64 heap;
	__u64 token; /* enum token */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * MAX_HEAPS);
	__type(key, struct token_key);
	__type(value, __u8);
} tokens SEC(".maps");

static __always_inline bool put_token(__u64 heap, enum token token)
{
	struct token_key key = {.heap = heap, .token = token};
	__u8 here = 1;

	return !bpf_map_update_elem(&tokens, &key, &here, BPF_NOEXIST);
}

static __always_inline bool take_token(__u64 heap, enum token token)
{
	struct token_key key = {.heap = heap, .token = token};

	return !bpf_map_delete_elem(&tokens, &key);
}

/*
 * A task leaves its heap. Returns whether no task is left. Several tasks may find that, and one of
 * them gets true. Another task may already have removed the heap, so the id was read before.
 */
static __always_inline bool is_last(struct thread *thread, __u64 heap, __u32 *count, __u32 leaving,
				    enum token token)
{
	if (thread->sole) {
		*count = 0;
		return true;
	}
	__sync_fetch_and_add(count, -leaving);
	return !*(volatile __u32 *)count && take_token(heap, token);
}

static __always_inline bool is_last_owner(struct thread *thread, struct heap *heap, __u32 leaving)
{
	return is_last(thread, heap->id, &heap->owners, leaving, LAST_OWNER);
}

static __always_inline bool is_last_user(struct thread *thread, struct heap *heap, __u32 leaving)
{
	__u64 id = heap->id;

	if (!is_last(thread, id, &heap->users, leaving, LAST_USER))
		return false;
	if (thread->sole)
		heap->live = thread->live;
	else
		/* If the process has left by an exec, this token still exists. */
		take_token(id, LAST_OWNER);
	return true;
}

static __always_inline void put_last_tokens(__u64 heap)
{
	if (!put_token(heap, LAST_USER) || !put_token(heap, LAST_OWNER))
		__sync_fetch_and_add(&rows_lost, 1);
}

static __always_inline void take_last_tokens(__u64 heap)
{
	take_token(heap, LAST_USER);
	take_token(heap, LAST_OWNER);
}

/* A heap with one task is about to get more users. From now on its live bytes are not counted. */
static __always_inline void share_heap(struct heap *heap, struct live *live)
{
	set_flags(heap, HEAP_PEAKLESS);
	put_last_tokens(heap->id);
}

static __always_inline void live_grows(struct thread *thread, __u64 size)
{
	thread->live.bytes += size;
	if (thread->live.bytes > thread->live.peak)
		thread->live.peak = thread->live.bytes;
}

static __always_inline void live_shrinks(struct thread *thread, __u64 size)
{
	thread->live.bytes -= size;
}

/* Attempts, in each of which another thread may hold the token. */
#define TRIES 8

/*
 * Threads that come at the same time take turns. Returns false if a thread did not get its turn: it
 * tries again with its next call.
 */
static __always_inline bool append_file(struct heap *heap, __u32 file)
{
	__u32 at;
	int i;

	for (i = 0; i < TRIES; i++) {
		if (put_token(heap->id, FILES))
			break;
	}
	if (i == TRIES)
		return false;
	at = heap->file_count;
	if (at < HEAP_FILES) {
		heap->files[at] = file;
		heap->file_count = at + 1;
	}
	take_token(heap->id, FILES);
	return true;
}

/*
 * The heaps of processes that were running before they were followed, and which of these processes
 * are chosen. The key is the leader's address. It is valid until the leader is freed: then the
 * entries go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_HEAPS);
	__type(key, __u64);
	__type(value, __u64);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_HEAPS);
	__type(key, __u64);
	__type(value, __u8);
} chosen SEC(".maps");

static __always_inline bool choose_process(struct task_struct *leader)
{
	__u64 key = (__u64)leader;
	__u8 here = 1;

	return !bpf_map_update_elem(&chosen, &key, &here, BPF_ANY);
}

static __always_inline bool is_chosen(struct task_struct *leader)
{
	__u64 key = (__u64)leader;

	return bpf_map_lookup_elem(&chosen, &key);
}

static __always_inline __u64 heap_of_process(struct task_struct *leader)
{
	__u64 key = (__u64)leader, *heap = bpf_map_lookup_elem(&processes, &key);

	return heap ? *heap : 0;
}

static __always_inline __u64 claim_process(struct task_struct *leader, __u64 heap)
{
	__u64 key = (__u64)leader, first;

	if (!bpf_map_update_elem(&processes, &key, &heap, BPF_NOEXIST))
		return heap;
	first = heap_of_process(leader);
	if (!first)
		__sync_fetch_and_add(&rows_lost, 1);
	return first;
}

static __always_inline void forget_process(struct task_struct *leader)
{
	__u64 key = (__u64)leader;

	if (scope != SCOPE_TREE)
		bpf_map_delete_elem(&processes, &key);
}

/* From now on another task may get this task's address. */
static __always_inline void task_freed(struct task_struct *task)
{
	__u64 key = (__u64)task;

	bpf_map_delete_elem(&processes, &key);
	bpf_map_delete_elem(&chosen, &key);
}

/* The process is one user, and each thread will be one more. */
static __always_inline void expect_joins(struct heap *heap, struct task_struct *leader)
{
	if (BPF_CORE_READ(leader, signal, live.counter) != 1)
		heap->flags |= HEAP_PEAKLESS;
	put_last_tokens(heap->id);
	if (!put_token(heap->id, PROCESS))
		__sync_fetch_and_add(&rows_lost, 1);
}

static __always_inline void drop_heap(__u64 id)
{
	take_last_tokens(id);
	take_token(id, PROCESS);
	bpf_map_delete_elem(&heaps, &id);
}

static __always_inline void thread_joined(struct thread *thread, struct heap *heap, bool alone)
{
	if (heap->flags & HEAP_PEAKLESS)
		return;
	if (alone) {
		take_last_tokens(heap->id);
		thread->sole = 1;
	} else {
		/*
		 * The process had one thread when the heap was created, so no other task sets the
		 * flag.
		 */
		set_flags(heap, HEAP_PEAKLESS);
	}
}

static __always_inline __u32 release_process_user(struct heap *heap)
{
	return heap->flags & HEAP_PROCESS && take_token(heap->id, PROCESS);
}

#endif
