/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The programs at probes, which are the same on all kernels but for sessions. */
#ifndef MEMLEAK_PROBES_H
#define MEMLEAK_PROBES_H

#include "alloc.bpf.h"

/* Allocators, for kernels without sessions. */
SEC("uprobe")
int alloc_enter(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();

	use_own_stack(ctx);
	if (thread)
		enter(ctx, thread, own_cookie(ctx));
	return 0;
}

SEC("uretprobe")
int alloc_return(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();

	use_own_stack(ctx);
	if (thread)
		leave(ctx, thread, own_cookie(ctx));
	return 0;
}

/* Functions of which the entry is enough. */
SEC(ENTRIES)
int entry_only(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();

	use_own_stack(ctx);
	if (thread)
		entered(ctx, thread, own_cookie(ctx));
	return 0;
}

/* Functions that may throw. */
SEC(ENTRIES)
int throwing(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();

	use_own_stack(ctx);
	if (thread)
		reached(ctx, thread, own_cookie(ctx));
	return 0;
}

#endif
