/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What stands in for what newer.bpf.h uses on kernels from 5.10 on that lack it: all threads are in
 * a hash table, no program uses what an atomic operation returns, nor any but additions (5.12), and
 * each probe has a program of its own, which knows its cookie as a constant (there are no others
 * before 5.15).
 */
#ifndef MEMLEAK_OLDER_H
#define MEMLEAK_OLDER_H

#include "core.h"
#include "maps.bpf.h"
#include "memleak.h"

/* There is no other. */
static __always_inline void use_task_stack(void *ctx)
{
}

/* A program is at one probe. */
#define ENTRY_SECTION "uprobe"

/* Before 5.12 a function that is verified once takes no pointer. */
#define SUBPROGRAM static __noinline

/* A field of the current task, whose address is nothing but a number here (before 5.11). */
#define task_field(task, field) BPF_CORE_READ(task, field)

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

/* The cookie of the probe that runs: user space puts it here before it loads the program. */
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

/*
 * Each flag is set once in a heap's life, by one who alone can: in heaps that others do not see
 * yet; HEAP_PEAKLESS by its only task, before there is a second; HEAP_LEADER_GONE by the leader;
 * HEAP_OWNER_GONE and HEAP_EXEC by the last owner; HEAP_ENDED by the last user. So to add it is to
 * set it, whatever others set meanwhile.
 */
static __always_inline void set_flags(struct heap *heap, __u32 flags)
{
	__sync_fetch_and_add(&heap->flags, flags);
}

/* How many heaps were begun on each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heaps_begun SEC(".maps");

/* More than Linux has CPUs (NR_CPUS of x86_64 is 8192). */
#define CPU_BITS 16

/* Heaps are begun in tracepoints, which are not preempted, and nest in none that begins one. */
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
 * What exactly one of several tasks gets: to delete an entry succeeds for one of them. A heap gets
 * two when it gets its second task, and they go when it ends; there is one more while a file is
 * put down, and one of a process that was there before it was followed.
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
 * A task leaves its heap. Whether nobody is left: of those who find that, one is to say so. The
 * others have left, too, but the heap may have gone already: hence its id from before.
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
		/* Where the process has left by an exec it is still there. */
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

/* A heap is about to have more users than its only task. Its live bytes are nobody's from now on.
 */
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

/* Rounds in which another thread may be in the way. */
#define TRIES 8

/*
 * Threads that come at one time go one after the other. Who is not served says so by `false`, and
 * comes again with its next call.
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
 * The heaps of processes that were there before they were followed, and which of these processes
 * were named. By the address of the leader, which is its own until it is freed: then they go.
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

/* A task's address may be another one's from now on. */
static __always_inline void task_freed(struct task_struct *task)
{
	__u64 key = (__u64)task;

	bpf_map_delete_elem(&processes, &key);
	bpf_map_delete_elem(&chosen, &key);
}

/* Its process is one user, and each thread will be one more. */
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
		/* It was alone when the heap was made, so there is nobody else to do this. */
		set_flags(heap, HEAP_PEAKLESS);
	}
}

static __always_inline __u32 release_process_user(struct heap *heap)
{
	return heap->flags & HEAP_PROCESS && take_token(heap->id, PROCESS);
}

#endif
