/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Frees. A free that only continues another one is not counted again. */
#ifndef MEMLEAK_FREES_H
#define MEMLEAK_FREES_H

#include "blocks.bpf.h"
#include "calls.bpf.h"
#include "cookie.bpf.h"
#include "core.h"
#include "counts.bpf.h"
#include "frame.bpf.h"
#include "heap_files.bpf.h"
#include "inside.bpf.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/*
 * Whether a free does the work of the one before it, for the same block. cfree may jump to free,
 * operator delete may call it, and a free may begin again.
 */
static __always_inline bool continues_last_free(struct pt_regs *ctx, struct thread *thread,
						__u64 block, __u64 cookie)
{
	struct free_call *outer = &thread->last_free;
	__u64 sp = PT_REGS_SP(ctx), back;

	if (outer->block != block || sp > outer->sp)
		return false;
	if (sp == outer->sp)
		return cookie != outer->cookie || kind_of(cookie) == KIND_FREE_AGAIN;
	back = return_address(ctx);
	return in_text(back, outer->ip, outer->cookie);
}

/* Whether more than one file with an allocator has been at work in this heap. */
static __always_inline bool uses_several_allocators(struct thread *thread)
{
	return thread->files & (thread->files - 1);
}

static __always_inline struct entered_free *entered_free_at(struct thread *thread, __u32 at)
{
	__u64 index = at;

	if (at >= MAX_FREES)
		return 0;
	asm volatile("%0 &= %1" : "+r"(index) : "i"(MAX_FREES - 1));
	return &thread->frees[index];
}

/* Records a free. If it passes its block on to another free, the other one can be recognised. */
SUBPROGRAM int push_free(struct pt_regs *ctx __arg_ctx, struct thread *thread, __u64 block)
{
	struct task_struct *task = current_task();
	struct entered_free *last;
	bool alt, last_alt;
	__u64 sp;
	int i;

	if (!ctx || !thread)
		return 0;
	sp = PT_REGS_SP(ctx);
	alt = on_signal_stack(task, sp);
	for (i = 0; i < MAX_FREES; i++) {
		last = entered_free_at(thread, thread->free_count - 1);
		if (!last)
			break;
		/* It has returned, if the stack pointer is back where it was, or above. */
		last_alt = on_signal_stack(task, last->sp);
		if (last_alt == alt ? last->sp > sp : alt)
			break;
		thread->free_count--;
	}
	if (thread->free_count >= MAX_FREES) {
		/* The first one has most likely returned, and the stack has only grown since. */
		for (i = 1; i < MAX_FREES; i++)
			thread->frees[i - 1] = thread->frees[i];
		thread->free_count = MAX_FREES - 1;
	}
	last = entered_free_at(thread, thread->free_count);
	if (!last)
		return 0;
	thread->free_count++;
	last->sp = sp;
	last->ip = PT_REGS_IP(ctx);
	last->cookie = probe_cookie(ctx);
	last->block = block;
	return 0;
}

/*
 * Whether a wrapping allocator's free has passed this block on. The block is the same, or has a
 * header before it. The wrapper does so by a tail call, or by a call from its own file.
 */
SUBPROGRAM int is_forwarded_free(struct pt_regs *ctx __arg_ctx, struct thread *thread, __u64 block)
{
	struct entered_free *outer;
	__u64 sp, back;
	int i;

	if (!ctx || !thread)
		return 0;
	sp = PT_REGS_SP(ctx);
	back = return_address(ctx);
	for (i = 0; i < MAX_FREES; i++) {
		outer = entered_free_at(thread, i);
		if (!outer || i >= thread->free_count)
			break;
		if (outer->sp < sp)
			continue;
		if (outer->sp == sp ? outer->block == block && outer->ip != PT_REGS_IP(ctx)
				    : in_text(back, outer->ip, outer->cookie))
			return 1;
	}
	return 0;
}

static __always_inline void set_last_free(struct pt_regs *ctx, struct thread *thread, __u64 block,
					  __u64 cookie)
{
	thread->last_free.block = block;
	thread->last_free.sp = PT_REGS_SP(ctx);
	thread->last_free.ip = PT_REGS_IP(ctx);
	thread->last_free.cookie = cookie;
}

static __always_inline void enter_free(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	__u64 block = argument(ctx, cookie_field(cookie, COOKIE_BLOCK));
	struct block content;

	if (!block)
		return;
	note_file(thread, cookie);
	if (thread->depth && is_nested(ctx, thread, cookie))
		return;
	if (take_block(thread, block, &content)) {
		set_last_free(ctx, thread, block, cookie);
		count_free(thread, &content);
	} else {
		if (continues_last_free(ctx, thread, block, cookie) ||
		    is_called_directly(ctx, cookie))
			return;
		if (uses_several_allocators(thread) && is_forwarded_free(ctx, thread, block))
			return;
		if (kind_of(cookie) == KIND_FREE_AGAIN)
			set_last_free(ctx, thread, block, cookie);
		count_unrecorded_free(thread);
	}
	if (uses_several_allocators(thread))
		push_free(ctx, thread, block);
}

/* The current process tells where it keeps its counters. */
static __always_inline void tells_of_counters(struct pt_regs *ctx, struct thread *thread)
{
	struct heap *heap = heap_by_id(thread->heap);

	if (heap)
		announced(heap, argument(ctx, 1), argument(ctx, 2));
}

/* Entry of a function without a return probe. */
static __always_inline void at_entry(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	switch (kind_of(cookie)) {
	case KIND_INSIDE:
		tells_of_counters(ctx, thread);
		note_file(thread, cookie);
		break;
	case KIND_START:
		note_file(thread, cookie);
		break;
	default:
		enter_free(ctx, thread, cookie);
	}
}

#endif
