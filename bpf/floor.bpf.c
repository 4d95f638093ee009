// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A program that does nothing, for functions that allocate (empty.bpf.c has the one for others).
 * Attached in the same way as those that count. With it, a call costs only what the kernel needs.
 * Any tool with probes at these places costs at least as much.
 */
#include "core.h"

char LICENSE[] SEC("license") = "GPL";

/* As in memleak.bpf.c. */
extern bool bpf_session_is_return(void) __ksym __weak;

/* Whether the kernel is asked for call stacks, by frame pointers. Only benchmarks want that. */
const volatile bool walks = false;

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, 127 * sizeof(__u64));
} found_stacks SEC(".maps");

SEC("uprobe.session")
int alloc_session(struct pt_regs *ctx)
{
	if (walks && bpf_session_is_return())
		bpf_get_stackid(ctx, &found_stacks, BPF_F_USER_STACK | BPF_F_FAST_STACK_CMP);
	return 0;
}
