/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When a process is held: as soon as it has mapped unknown files, and before it has run any code of
 * them. How it waits is in holds.bpf.h.
 */
#ifndef MEMLEAK_ARRIVALS_H
#define MEMLEAK_ARRIVALS_H

#include "core.h"
#include "holds.bpf.h"
#include "loading.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "newer.bpf.h"
#include "survey.bpf.h"

/*
 * A new image is mapped: program and interpreter. Returns whether it has files that are not known.
 */
static __always_inline bool image_arrived(void)
{
	struct thread *thread = thread_of(bpf_get_current_task_btf());

	return thread && survey_current(thread);
}

/* Holds the current process after an exec, if it has mapped files that are not known. */
static __always_inline void hold_image(bool again)
{
	struct thread *thread = thread_of(bpf_get_current_task_btf());
	struct heap *heap = thread ? heap_by_id(thread->heap) : 0;

	if (!heap || heap->flags & HEAP_SURVEYED)
		return;
	set_flags(heap, HEAP_SURVEYED);
	if (again)
		__sync_fetch_and_add(&retold[TASK_ARRIVED], 1);
	if (survey_current(thread))
		hold_on_return(bpf_get_current_task_btf(), EXEC);
}

/*
 * The current process goes on, although it has files that are not known. If it has a dynamic loader
 * that is known, that will hold the process later. A static program is late.
 */
static __always_inline void mark_unheld(void)
{
	mark_heap(HEAP_UNHELD);
}

/*
 * The dynamic loader has mapped the libraries that it was asked for, and called none of them yet.
 */
static __always_inline void libraries_arrived(struct pt_regs *ctx, __s64 distance, bool on_return)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct thread *thread = thread_of(task);
	struct heap *heap = thread ? heap_by_id(thread->heap) : 0;
	enum moment moment = LATER;

	/* A thread that may join has joined: the loader allocates before it maps a library. */
	if (!heap)
		return;
	if (hands_over(ctx, heap, distance))
		moment = HANDOVER;
	if (!survey_current(thread))
		leave_loader(moment);
	else if (on_return)
		hold_on_return(task, moment);
	else
		hold_here(task, PT_REGS_SP(ctx), moment);
	if (heap->flags & HEAP_UNHELD)
		clear_flags(heap, HEAP_UNHELD);
}

#endif
