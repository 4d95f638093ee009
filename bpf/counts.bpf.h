/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the allocation and the free of a block do to the counters. */
#ifndef MEMLEAK_COUNTS_H
#define MEMLEAK_COUNTS_H

#include "blocks.bpf.h"
#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "stacks.bpf.h"

static __always_inline __u32 time_of_birth(void)
{
	return dated ? bpf_ktime_get_ns() >> BORN_SHIFT : 0;
}

/*
 * `stack`: as in struct block. A global function is verified once, and not for each way that leads
 * to it.
 */
SUBPROGRAM int count_allocation(struct thread *thread, __u64 address, __u64 size, __u32 stack)
{
	struct block block = {.size = size, .stack = stack, .born = time_of_birth()};
	struct heap *heap;

	if (!thread)
		return 0;
	thread->sum.alloc_bytes += size;
	thread->sum.alloc_count++;
	if (record_block(thread, address, &block)) {
		heap = heap_by_id(thread->heap);
		if (heap) {
			__sync_fetch_and_add(&heap->lost_bytes, size);
			__sync_fetch_and_add(&heap->lost_blocks, 1);
		}
		return 0;
	}
	stack_allocates(&block);
	live_grows(thread, size);
	return 0;
}

static __always_inline void count_free(struct thread *thread, struct block *block)
{
	thread->sum.free_bytes += block->size;
	thread->sum.free_count++;
	stack_frees(block);
	live_shrinks(thread, block->size);
}

/*
 * A free of a block that is not in the table. As long as the heap has blocks that did not fit into
 * the table, it counts as one of them. Otherwise the heap never allocated the block.
 */
static __always_inline void count_unrecorded_free(struct thread *thread)
{
	struct heap *heap = heap_by_id(thread->heap);

	if (heap && heap->lost_blocks > heap->lost_freed) {
		__sync_fetch_and_add(&heap->lost_freed, 1);
		thread->sum.free_count++;
		return;
	}
	thread->sum.unknown_frees++;
}

#endif
