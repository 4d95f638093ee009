/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Walks that were made before. A program allocates again and again at the same depth of the same
 * calls. If a walk begins with the same registers as a known one, and all words that the known one
 * has read of the stack are the same, it leads to the same stack. To compare the words takes a
 * quarter of the time of a walk.
 */
#ifndef MEMLEAK_KNOWN_WALKS_H
#define MEMLEAK_KNOWN_WALKS_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "stack_sums.bpf.h"
#include "unwind.bpf.h"

#ifndef OLDER_KERNELS

/* Walks with the same registers and other words share a set. */
enum { KNOWN_SET_BITS = 9, KNOWN_IN_SET = 4 };

/* A walk that was complete. */
struct known_walk {
	__u64 hash;  /* of its stack */
	__u32 entry; /* of its sums; 0: none */
	__u32 pad;
	struct walk_inputs inputs;
};

struct known_set {
	__u32 is_used; /* somebody reads or writes the set */
	__u32 next;    /* the walk that is replaced next, modulo KNOWN_IN_SET */
	__u32 last;    /* the walk that was found last */
	__u32 pad;
	struct known_walk walks[KNOWN_IN_SET];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << KNOWN_SET_BITS);
	__type(key, __u32);
	__type(value, struct known_set);
} known_walks SEC(".maps");

/* The set for these inputs, which nobody else may use until it is given back; 0 if somebody does.
 */
static __always_inline struct known_set *take_set(struct walk_inputs *inputs)
{
	__u64 key = mix(mix(inputs->space, inputs->ip), inputs->sp);
	__u32 index = key * GOLDEN_RATIO >> (64 - KNOWN_SET_BITS);
	struct known_set *set = bpf_map_lookup_elem(&known_walks, &index);

	if (!set || __sync_val_compare_and_swap(&set->is_used, 0, 1))
		return 0;
	return set;
}

static __always_inline void give_back(struct known_set *set)
{
	__sync_lock_test_and_set(&set->is_used, 0);
}

/* The words that one step compares. */
enum { READS_AT_ONCE = 8 };

struct comparison {
	struct stack_walk *walk;
	struct walk_inputs *before;
	__u32 is_same;
	__u32 pad;
};

static long compare_words(__u32 step, struct comparison *comparison)
{
	struct stack_walk *walk = comparison->walk;
	struct walk_inputs *before = comparison->before;
	__u32 number = step * READS_AT_ONCE, i;

	for (i = 0; i < READS_AT_ONCE; i++, number++) {
		if (number >= before->reads) {
			comparison->is_same = 1;
			return 1;
		}
		if (word_at(walk, walk->sp + before->at[number & (MAX_READS - 1)]) !=
		    before->words[number & (MAX_READS - 1)])
			return 1;
	}
	return 0;
}

static __always_inline bool begins_like(struct walk_inputs *inputs, struct walk_inputs *before)
{
	return before->space == inputs->space && before->ip == inputs->ip &&
	       before->sp == inputs->sp &&
	       (!(before->uses & OWN_FRAME_POINTER) ||
		before->frame_pointer == inputs->frame_pointer) &&
	       (!(before->uses & OWN_THIRD) || before->third == inputs->third);
}

/* The entry for the stack of a walk that begins like this one, if it is known; 0 if it is not. */
SUBPROGRAM int known_entry(struct stack_walk *walk)
{
	struct comparison comparison = {.walk = walk};
	struct known_walk *known;
	struct known_set *set;
	struct stack_sum *sum;
	__u32 entry = 0, number, i;

	if (!stacks || !walk)
		return 0;
	set = take_set(&walk->inputs);
	if (!set)
		return 0;
	for (i = 0; i < KNOWN_IN_SET && !entry; i++) {
		number = (set->last + i) & (KNOWN_IN_SET - 1);
		known = &set->walks[number];
		if (!known->entry || !begins_like(&walk->inputs, &known->inputs))
			continue;
		comparison.before = &known->inputs;
		bpf_loop(MAX_READS / READS_AT_ONCE + 1, compare_words, &comparison, 0);
		if (!comparison.is_same || walk->is_unreadable)
			continue;
		set->last = number;
		entry = known->entry;
		sum = stack_sum_of(entry);
		/* The entry may be another stack's by now. */
		if (!sum || sum->heap != walk->heap || sum->stack != known->hash || !sum->told)
			entry = known->entry = 0;
	}
	give_back(set);
	return entry;
}

/* Remembers a complete walk, and the entry for its stack. */
SUBPROGRAM int remember_walk(struct stack_walk *walk, __u32 entry)
{
	struct walk_inputs *inputs;
	struct known_walk *known;
	struct known_set *set;
	__u32 reads;

	if (!stacks || !walk)
		return 0;
	inputs = &walk->inputs;
	reads = inputs->reads;
	if (walk->record.end != WALK_COMPLETE || inputs->is_odd || reads > MAX_READS)
		return 0;
	set = take_set(inputs);
	if (!set)
		return 0;
	known = &set->walks[set->next++ & (KNOWN_IN_SET - 1)];
	known->hash = walk->record.hash;
	known->entry = entry;
	/* The verifier forgets the bound of what the compiler has kept on the stack. */
	barrier_var(reads);
	if (reads > MAX_READS)
		reads = MAX_READS;
	/* Most walks read few words, and to copy room for all costs as much as a walk. */
	bpf_probe_read_kernel(&known->inputs,
			      __builtin_offsetof(struct walk_inputs, at) + reads * sizeof(__u32),
			      inputs);
	bpf_probe_read_kernel(known->inputs.words, reads * sizeof(__u64), inputs->words);
	give_back(set);
	return 1;
}

#endif

#endif
