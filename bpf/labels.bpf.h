/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Variables of images' environments, if user space asked for some: an environment may hold secrets.
 */
#ifndef MEMLEAK_LABELS_H
#define MEMLEAK_LABELS_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/* Set by user space before loading, which also gives the map its size. */
const volatile __u32 label_count = 0;
const volatile struct label_name label_names[MAX_LABELS];

/*
 * By the heap's id. User space takes an entry when it takes the heap's row. An image that finds no
 * room has no labels.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, GROWS);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct labels);
} labels SEC(".maps");

static const struct labels no_labels;

/*
 * How many pieces of an environment are searched at most. A loop in a program for older kernels is
 * verified step by step.
 */
#ifdef OLDER_KERNELS
enum { MAX_PIECES = 256 };
#else
enum { MAX_PIECES = 65536 };
#endif

/* How far an environment has been searched. */
struct label_search {
	struct labels *labels;
	__u64 at, end;
	bool within; /* `at` is inside a string */
};

/* Takes the value if the piece begins with the label's name. */
static __always_inline void take_label(struct label_search *search, __u32 label)
{
	struct labels *labels = search->labels;
	__u32 length = label_names[label].length;
	__u64 differs = 0;
	long taken;
	int word;

	if (!length || labels->lengths[label])
		return;
	for (word = 0; word < LABEL_WORDS; word++)
		differs |= (labels->piece[word] & label_names[label].mask[word]) ^
			   label_names[label].wanted[word];
	if (differs)
		return;
	taken =
	    bpf_probe_read_user_str(labels->values[label].text, sizeof(labels->values[label].text),
				    (const void *)(search->at + length));
	if (taken > 0)
		labels->lengths[label] = taken;
}

/* Looks at the next piece: a string of the environment, or as much of it as there is room for. */
static int search_piece(__u32 step, void *context)
{
	struct label_search *search = context;
	struct labels *labels = search->labels;
	long length;
	__u32 label;

	if (search->at >= search->end)
		return 1;
	length =
	    bpf_probe_read_user_str(labels->piece, sizeof(labels->piece), (const void *)search->at);
	if (length <= 0)
		return 1;
	if (!search->within)
		for (label = 0; label < MAX_LABELS; label++)
			take_label(search, label);
	/* A piece that is full may go on. Its last byte is a NUL that is not the string's. */
	search->within = length == sizeof(labels->piece);
	search->at += search->within ? length - 1 : length;
	return 0;
}

/*
 * Records the variables that are wanted of the environment that the current process was executed
 * with. The kernel has just written it, so it is in memory.
 */
static __always_inline void record_labels(struct task_struct *task, __u64 id)
{
	struct label_search search = {};
	struct mm_struct *mm;

	if (!label_count || bpf_map_update_elem(&labels, &id, &no_labels, BPF_ANY))
		return;
	search.labels = bpf_map_lookup_elem(&labels, &id);
	mm = BPF_CORE_READ(task, mm);
	if (!search.labels || !mm)
		return;
	search.at = BPF_CORE_READ(mm, env_start);
	search.end = BPF_CORE_READ(mm, env_end);
#ifdef OLDER_KERNELS
	for (__u32 step = 0; step < MAX_PIECES; step++)
		if (search_piece(step, &search))
			break;
#else
	bpf_loop(MAX_PIECES, search_piece, &search, 0);
#endif
}

/* A forked child has its parent's labels. */
static __always_inline void inherit_labels(__u64 parent, __u64 child)
{
	struct labels *found;

	if (!label_count)
		return;
	found = bpf_map_lookup_elem(&labels, &parent);
	if (found)
		bpf_map_update_elem(&labels, &child, found, BPF_ANY);
}

#endif
