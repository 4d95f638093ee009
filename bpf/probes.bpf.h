/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The programs at probes. Except for sessions, they are the same on all kernels. */
#ifndef MEMLEAK_PROBES_H
#define MEMLEAK_PROBES_H

#include "alloc.bpf.h"
#include "core.h"
#include "frees.bpf.h"
#include "join.bpf.h"
#include "kernels.bpf.h"
#include "loading.bpf.h"
#include "maps.bpf.h"

static __always_inline void at_report(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	struct heap *heap = heap_by_id(thread->heap);

	if (heap && hands_over(ctx, heap, cookie))
		clear_flags(heap, HEAP_LOADING);
}

/* A program that calls `does` for a thread that is followed. */
#define AT_PROBE(section, name, does)                                                              \
	SEC(section)                                                                               \
	int name(struct pt_regs *ctx)                                                              \
	{                                                                                          \
		struct thread *thread = current_thread();                                          \
                                                                                                   \
		use_task_stack(ctx);                                                               \
		if (thread)                                                                        \
			does(ctx, thread, probe_cookie(ctx));                                      \
		return 0;                                                                          \
	}

/* Allocators, for kernels without sessions. */
AT_PROBE("uprobe", alloc_enter, enter)
AT_PROBE("uretprobe", alloc_return, leave)
/* Functions without a return probe. */
AT_PROBE(ENTRY_SECTION, entry_only, at_entry)
/* Functions that may throw. */
AT_PROBE(ENTRY_SECTION, throwing, at_throwing)
/* Where a dynamic loader reports what it maps, for kernels that do not hold a process there. */
AT_PROBE(ENTRY_SECTION, loader_reports, at_report)

#endif
