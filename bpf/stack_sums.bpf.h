/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What each heap has allocated by each of its stacks. */
#ifndef MEMLEAK_STACK_SUMS_H
#define MEMLEAK_STACK_SUMS_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

#ifndef OLDER_KERNELS

/*
 * The sums of each stack of each heap. An entry is found by the hash of both. User space gives the
 * entries of a heap back when it has ended. User space sets max_entries.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct stack_sum);
} stack_sums SEC(".maps");

static __always_inline struct stack_sum *stack_sum_of(__u32 stack)
{
	return stacks && stack ? bpf_map_lookup_elem(&stack_sums, &stack) : 0;
}

#endif

#endif
