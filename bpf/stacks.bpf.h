/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Attributes allocations to call stacks: sums for each stack of a heap. */
#ifndef MEMLEAK_STACKS_H
#define MEMLEAK_STACKS_H

#include "core.h"
#include "kernels.bpf.h"
#include "known_walks.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "stack_sums.bpf.h"
#include "unwind.bpf.h"

#ifdef OLDER_KERNELS

static __always_inline __u32 stack_of(struct pt_regs *ctx, struct thread *thread, bool at_ret)
{
	return 0;
}

static __always_inline void stack_allocates(struct block *block)
{
}

static __always_inline void stack_frees(struct block *block)
{
}

#else

/* New stacks on their way to user space: about 20,000 of 45 frames. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} new_stacks SEC(".maps");

enum { TOLD_BITS = 15, RING_WAKES_AT = 2 << 20 };

/*
 * Hashes of stacks that user space was told of. Nothing is lost if it is told once more. User space
 * forgets stacks that are in no sum, and sets all of this to zero before it looks which ones are.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 << TOLD_BITS);
	__type(key, __u32);
	__type(value, __u64);
} told_stacks SEC(".maps");

/* Tells user space what the frames of a stack are, if it does not know that. */
SUBPROGRAM int tell_stack(struct stack_walk *walk, struct stack_sum *sum)
{
	__u64 size, *told;
	__u32 index;

	if (!stacks || !walk || !sum)
		return 0;
	index = walk->record.hash * GOLDEN_RATIO >> (64 - TOLD_BITS);
	told = bpf_map_lookup_elem(&told_stacks, &index);
	if (!told)
		return 0;
	if (*told != walk->record.hash) {
		size = __builtin_offsetof(struct stack_record, frames) + walk->record.depth * 8ULL;
		if (size > sizeof(walk->record))
			return 0;
		if (bpf_ringbuf_output(&new_stacks, &walk->record, size,
				       bpf_ringbuf_query(&new_stacks, BPF_RB_AVAIL_DATA) >
					       RING_WAKES_AT
					   ? BPF_RB_FORCE_WAKEUP
					   : BPF_RB_NO_WAKEUP))
			return 0;
		*told = walk->record.hash;
	}
	sum->told = 1;
	return 1;
}

/* Entries that are tried before the table counts as full. */
enum { STACK_TRIES = 16 };

/* Puts an entry before the others of its heap. */
struct chaining {
	struct heap *heap;
	struct stack_sum *sum;
	__u32 at;
	__u32 is_done;
};

enum { CHAIN_TRIES = 64 };

static long try_to_chain(__u32 index, struct chaining *chaining)
{
	__u32 first = chaining->heap->stacks;

	chaining->sum->next = first;
	chaining->is_done =
	    __sync_val_compare_and_swap(&chaining->heap->stacks, first, chaining->at) == first;
	return chaining->is_done;
}

/* A search for a stack's entry. */
struct entry_search {
	struct stack_walk *walk;
	__u64 heap;
	__u32 first;
	__u32 at;     /* the entry, if it is there */
	__u32 unused; /* the first entry with room */
};

static long look_at_entry(__u32 index, struct entry_search *search)
{
	__u32 at = (search->first + index) & stack_mask;
	struct stack_sum *sum = bpf_map_lookup_elem(&stack_sums, &at);

	if (!sum)
		return 1;
	if (sum->heap == search->heap && sum->stack == search->walk->record.hash) {
		if (!sum->told)
			tell_stack(search->walk, sum);
		search->at = at;
		return 1;
	}
	/* The first entry's number stands for none. */
	if (!search->unused && at && !sum->heap)
		search->unused = at;
	return 0;
}

/*
 * The entry for a walk's stack in this heap; 0 if there is no room for it; -1 if another task was
 * faster to take the room.
 */
SUBPROGRAM int enter_stack(struct stack_walk *walk, __u64 heap)
{
	struct entry_search search = {.walk = walk, .heap = heap};
	struct chaining chaining = {};

	if (!stacks || !walk)
		return 0;
	search.first = mix(walk->record.hash, heap);
	/* Mostly it is the first. */
	if (!look_at_entry(0, &search))
		bpf_loop(STACK_TRIES, look_at_entry, &search, 0);
	if (search.at)
		return search.at;
	chaining.at = search.unused;
	chaining.sum = chaining.at ? bpf_map_lookup_elem(&stack_sums, &chaining.at) : 0;
	if (!chaining.sum)
		return 0;
	if (__sync_val_compare_and_swap(&chaining.sum->heap, 0, heap))
		return -1;
	chaining.sum->stack = walk->record.hash;
	chaining.heap = heap_by_id(heap);
	if (chaining.heap)
		bpf_loop(CHAIN_TRIES, try_to_chain, &chaining, 0);
	if (!chaining.is_done) {
		chaining.sum->stack = 0;
		chaining.sum->heap = 0;
		return -1;
	}
	tell_stack(walk, chaining.sum);
	return chaining.at;
}

/* How often a task tries to be the first in the room for an entry. */
enum { ENTRY_TRIES = 8 };

/*
 * The entry of the stack that a call has just returned to; 0 if it has none. `at_ret`: the call has
 * not returned yet.
 */
SUBPROGRAM int stack_of(struct pt_regs *ctx __arg_ctx, struct thread *thread, int at_ret)
{
	struct stack_walk *walk;
	int i, entry = 0;
	bool repeats;

	if (!stacks || !ctx || !thread)
		return 0;
	walk = begin_walk();
	if (!walk)
		return 0;
	start_walk(ctx, thread->heap, walk, at_ret);
	repeats = thread->walks >= few_walks;
	if (repeats)
		entry = known_entry(walk);
	else
		thread->walks++;
	if (!entry) {
		walk->is_unreadable = 0;
		walk_stack(walk);
		for (i = 0; i < ENTRY_TRIES; i++) {
			entry = enter_stack(walk, thread->heap);
			if (entry >= 0)
				break;
		}
		if (repeats && entry > 0)
			remember_walk(walk, entry);
	}
	end_walk(walk);
	return entry > 0 ? entry : 0;
}

static __always_inline void stack_allocates(struct block *block)
{
	struct stack_sum *sum = stack_sum_of(block->stack);

	if (!sum)
		return;
	__sync_fetch_and_add(&sum->alloc_bytes, block->size);
	__sync_fetch_and_add(&sum->alloc_count, 1);
}

static __always_inline void stack_frees(struct block *block)
{
	struct stack_sum *sum = stack_sum_of(block->stack);

	if (!sum)
		return;
	__sync_fetch_and_add(&sum->free_bytes, block->size);
	__sync_fetch_and_add(&sum->free_count, 1);
}

#endif

#endif
