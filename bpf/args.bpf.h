/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command lines of images, if user space asked for them: they may hold secrets. */
#ifndef MEMLEAK_ARGS_H
#define MEMLEAK_ARGS_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/* Set by user space before loading, which also gives the map its size. */
const volatile bool wants_args = false;

/*
 * By the heap's id. User space takes an entry when it takes the heap's row. An image that finds no
 * room has no command line.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, GROWS);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct command_line);
} command_lines SEC(".maps");

static const struct command_line no_command_line;

/*
 * Records the words that the current process was executed with. The kernel has just written them,
 * so they are in memory.
 */
static __always_inline void record_args(struct task_struct *task, __u64 id)
{
	struct command_line *line;
	struct mm_struct *mm;
	__u64 start, length;
	__u32 kept;

	if (!wants_args || bpf_map_update_elem(&command_lines, &id, &no_command_line, BPF_ANY))
		return;
	line = bpf_map_lookup_elem(&command_lines, &id);
	mm = BPF_CORE_READ(task, mm);
	if (!line || !mm)
		return;
	start = BPF_CORE_READ(mm, arg_start);
	length = BPF_CORE_READ(mm, arg_end) - start;
	kept = length > ARGS_LEN ? ARGS_LEN : length;
	barrier_var(kept);
	/* For the verifier, which has forgotten the bound. */
	kept &= ARGS_LEN;
	if (bpf_probe_read_user(line->words, kept, (const void *)start))
		return;
	line->length = length > 0xffffffff ? 0xffffffff : length;
}

/* A forked child has its parent's command line. */
static __always_inline void inherit_args(__u64 parent, __u64 child)
{
	struct command_line *line;

	if (!wants_args)
		return;
	line = bpf_map_lookup_elem(&command_lines, &parent);
	if (line)
		bpf_map_update_elem(&command_lines, &child, line, BPF_ANY);
}

#endif
