/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The table of live blocks: on newer kernels an array of slots before a hash table. */
#ifndef MEMLEAK_BLOCKS_H
#define MEMLEAK_BLOCKS_H

#include "core.h"
#include "maps.bpf.h"
#include "memleak.h"

#ifdef OLDER_KERNELS

static __always_inline int record_block(struct thread *thread, __u64 address, struct block *block)
{
	struct block_key key = {.heap = thread->heap, .address = address};

	return bpf_map_update_elem(&blocks, &key, block, BPF_ANY);
}

/* Takes a block out of the table. Returns whether it was there. */
static __always_inline bool take_block(struct thread *thread, __u64 address, struct block *block)
{
	struct block_key key = {.heap = thread->heap, .address = address};
	struct block *found = bpf_map_lookup_elem(&blocks, &key);

	if (!found)
		return false;
	*block = *found;
	/* If two threads free the same block (a bug of the program), one of them gets it. */
	return bpf_map_delete_elem(&blocks, &key) != -ENOENT;
}

#else

/*
 * Heaps whose processes were held at their ends, until user space has read the list of their
 * blocks. More processes than are ever held at one time.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u8);
} unlisted SEC(".maps");

static __always_inline bool heap_has_ended(__u64 id)
{
	struct heap *heap = heap_by_id(id);

	return !heap || heap->flags & HEAP_ENDED;
}

static __always_inline bool heap_is_dead(__u64 id)
{
	return heap_has_ended(id) && !bpf_map_lookup_elem(&unlisted, &id);
}

/*
 * Most blocks are short-lived, and a hash table's insertion, look-up and deletion cost more than
 * all other work here. So a block goes first to a slot that its address selects, and to the hash
 * table only if the slot is taken. A block is in one of them, never in both, and never moves. User
 * space sets max_entries.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

_Static_assert(sizeof(struct slot) == 32, "two slots are in a line of the cache");
_Static_assert(sizeof(struct block) <= 24, "a block with its stack is small");

/*
 * The slot that a block may be in. Neighbours have neighbouring slots. So an address range of 16 B
 * × slots has no collision in itself. The multiplications spread ranges and heaps.
 */
static __always_inline struct slot *slot_of(__u64 heap, __u64 address)
{
	__u32 index = (address >> 4) + (address >> 24) * 0x9e3779b1 + heap * 0x85ebca6b;

	index &= slot_mask;
	return bpf_map_lookup_elem(&slots, &index);
}

static __always_inline bool is_full(__u32 state)
{
	return (state & ((1 << BORN_IN_STATE) - 1)) == SLOT_FULL;
}

/* Whether this program made the change. */
static __always_inline bool slot_changes(struct slot *slot, __u32 from, __u32 to)
{
	return __sync_val_compare_and_swap(&slot->state, from, to) == from;
}

/*
 * A slot is busy only while one program fills or empties it. No other program has to wait for that.
 * A block that is being put in has not been returned to the caller yet. A block that is being taken
 * out is being freed.
 */
static __always_inline bool put_in_slot(__u64 heap, __u64 address, struct block *block)
{
	struct slot *slot = slot_of(heap, address);
	__u32 state;

	if (!slot)
		return false;
	if (!slot_changes(slot, SLOT_EMPTY, SLOT_BUSY)) {
		state = slot->state;
		if (!is_full(state))
			return false;
		/*
		 * The old block may go if its heap has ended, or if it is the same block, whose
		 * free was missed.
		 */
		if (slot->heap == heap ? slot->address != address : !heap_is_dead(slot->heap))
			return false;
		if (!slot_changes(slot, state, SLOT_BUSY))
			return false;
		if (slot->heap == heap ? slot->address != address : !heap_is_dead(slot->heap)) {
			slot_changes(slot, SLOT_BUSY, state);
			return false;
		}
		if (slot->heap != heap)
			__sync_fetch_and_add(&dead_blocks, -1);
	}
	slot->heap = heap;
	slot->address = address;
	slot->size = block->size;
	slot->stack = block->stack;
	slot_changes(slot, SLOT_BUSY, block->born << BORN_IN_STATE | SLOT_FULL);
	return true;
}

static __always_inline bool take_from_slot(__u64 heap, __u64 address, struct block *block)
{
	struct slot *slot = slot_of(heap, address);
	__u32 state;
	bool ours;

	if (!slot || slot->address != address || slot->heap != heap)
		return false;
	state = slot->state;
	if (!is_full(state) || !slot_changes(slot, state, SLOT_BUSY))
		return false;
	ours = slot->address == address && slot->heap == heap;
	block->size = slot->size;
	block->stack = slot->stack;
	block->born = state >> BORN_IN_STATE;
	slot_changes(slot, SLOT_BUSY, ours ? SLOT_EMPTY : state);
	return ours;
}

static long drop_block_if_dead(void *map, struct block_key *key, struct block *block,
			       bool *unlisted_too)
{
	struct block_key dead = *key;

	if (!heap_has_ended(dead.heap) || (!*unlisted_too && !heap_is_dead(dead.heap)))
		return 0;
	if (!bpf_map_delete_elem(&blocks, &dead))
		__sync_fetch_and_add(&dead_blocks, -1);
	return 0;
}

/*
 * The table of live blocks is full. Blocks of ended heaps may go. User space removes them from time
 * to time. Where a tree of processes outruns it, this function removes them. It does so only if
 * they are an eighth of the table or more, because it visits the whole table.
 *
 * With `force`, those go, too, whose list is still to be read: what a process leaked is worth more
 * than what another one lost. User space finds out that blocks are missing.
 */
__noinline long make_room(int force)
{
	bool unlisted_too = force;

	if (dead_blocks * 8 < max_blocks)
		return 0;
	bpf_for_each_map_elem(&blocks, drop_block_if_dead, &unlisted_too, 0);
	return 1;
}

static __always_inline int record_block(struct thread *thread, __u64 address, struct block *block)
{
	struct block_key key = {.heap = thread->heap, .address = address};

	if (put_in_slot(key.heap, address, block))
		return 0;
	thread->sum.hashed++;
	if (!bpf_map_update_elem(&blocks, &key, block, BPF_ANY))
		return 0;
	if (make_room(0) && !bpf_map_update_elem(&blocks, &key, block, BPF_ANY))
		return 0;
	if (make_room(1) && !bpf_map_update_elem(&blocks, &key, block, BPF_ANY))
		return 0;
	thread->sum.hashed--;
	return -1;
}

/* Takes a block out of the table. Returns whether it was there. */
static __always_inline bool take_block(struct thread *thread, __u64 address, struct block *block)
{
	struct block_key key = {.heap = thread->heap, .address = address};
	struct block *found;

	if (take_from_slot(key.heap, address, block))
		return true;
	found = bpf_map_lookup_elem(&blocks, &key);
	if (!found)
		return false;
	*block = *found;
	/* If two threads free the same block (a bug of the program), one of them gets it. */
	if (bpf_map_delete_elem(&blocks, &key) == -ENOENT)
		return false;
	thread->sum.hashed--;
	return true;
}

#endif

#endif
