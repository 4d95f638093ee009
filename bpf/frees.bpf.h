/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Frees, each of which is told from the rest of another one. */
#ifndef MEMLEAK_FREES_H
#define MEMLEAK_FREES_H

#include "blocks.bpf.h"
#include "calls.bpf.h"
#include "cookie.bpf.h"
#include "core.h"
#include "counts.bpf.h"
#include "frame.bpf.h"
#include "heap_files.bpf.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/*
 * glibc gives a thread's cache back, when the thread ends, by calling its own free for blocks that
 * were freed long ago. Such a call goes straight to the function, where everyone else's goes by the
 * symbol, which an interposed allocator could take.
 */
static __always_inline bool calls_itself(struct pt_regs *ctx, __u64 cookie)
{
#if defined(__TARGET_ARCH_x86)
	__u32 index = cookie >> COOKIE_SITE;
	__u64 back = user_word(PT_REGS_SP(ctx)), ip = PT_REGS_IP(ctx);
	struct site *site = bpf_map_lookup_elem(&sites, &index);
	struct {
		__u8 unused[3];
		__u8 opcode;
		__s32 relative;
	} call = {};

	if (!site || !in_text(back, ip, cookie))
		return false;
	bpf_probe_read_user(&call.opcode, 5, (void *)(back - 5));
	return call.opcode == 0xe8 && back + call.relative == ip - site->entry_before;
#else
	__u32 index = cookie >> COOKIE_SITE;
	__u64 back = PT_REGS_RET(ctx), ip = PT_REGS_IP(ctx);
	struct site *site = bpf_map_lookup_elem(&sites, &index);
	__u32 call = 0;

	if (!site || !in_text(back, ip, cookie))
		return false;
	bpf_probe_read_user(&call, sizeof(call), (void *)(back - 4));
	/* bl: six bits of opcode, a signed distance of 26 bits in instructions */
	return call >> 26 == 0x25 &&
	       back - 4 + ((__s64)(__s32)(call << 6) >> 4) == ip - site->entry_before;
#endif
}

/*
 * Whether a free does the work of the one before it, for the same block: cfree may jump to free,
 * operator delete call it, a free begin again.
 */
static __always_inline bool is_rest_of_free(struct pt_regs *ctx, struct thread *thread, __u64 block,
					    __u64 cookie)
{
	struct free_call *outer = &thread->freed;
	__u64 sp = PT_REGS_SP(ctx), back;

	if (outer->block != block || sp > outer->sp)
		return false;
	if (sp == outer->sp)
		return cookie != outer->cookie || kind_of(cookie) == KIND_FREE_AGAIN;
	back = return_address(ctx);
	return in_text(back, outer->ip, outer->cookie);
}

/* Whether more than one file with an allocator has been at work in this heap. */
static __always_inline bool may_wrap(struct thread *thread)
{
	return thread->files & (thread->files - 1);
}

static __always_inline struct entered_free *free_at(struct thread *thread, __u32 at)
{
	__u64 index = at;

	if (at >= MAX_FREES)
		return 0;
	asm volatile("%0 &= %1" : "+r"(index) : "i"(MAX_FREES - 1));
	return &thread->frees[index];
}

/* Notes a free, so that one that it passes the block on to can be told from it. */
FUNCTION int note_free(struct pt_regs *ctx __arg_ctx, struct thread *thread, __u64 block)
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
		last = free_at(thread, thread->free_count - 1);
		if (!last)
			break;
		/* It has returned, if the stack has been given back to where it was. */
		last_alt = on_signal_stack(task, last->sp);
		if (last_alt == alt ? last->sp > sp : alt)
			break;
		thread->free_count--;
	}
	if (thread->free_count >= MAX_FREES) {
		/* The first has most likely returned, and the stack only grown since. */
		for (i = 1; i < MAX_FREES; i++)
			thread->frees[i - 1] = thread->frees[i];
		thread->free_count = MAX_FREES - 1;
	}
	last = free_at(thread, thread->free_count);
	if (!last)
		return 0;
	thread->free_count++;
	last->sp = sp;
	last->ip = PT_REGS_IP(ctx);
	last->cookie = own_cookie(ctx);
	last->block = block;
	return 0;
}

/*
 * A free of an allocator that wraps another one passes the block on, as it is or with a header
 * before it: by a tail call, or by a call from its own file.
 */
FUNCTION int is_passed_on(struct pt_regs *ctx __arg_ctx, struct thread *thread, __u64 block)
{
	struct entered_free *outer;
	__u64 sp, back;
	int i;

	if (!ctx || !thread)
		return 0;
	sp = PT_REGS_SP(ctx);
	back = return_address(ctx);
	for (i = 0; i < MAX_FREES; i++) {
		outer = free_at(thread, i);
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

static __always_inline void remember_free(struct pt_regs *ctx, struct thread *thread, __u64 block,
					  __u64 cookie)
{
	thread->freed.block = block;
	thread->freed.sp = PT_REGS_SP(ctx);
	thread->freed.ip = PT_REGS_IP(ctx);
	thread->freed.cookie = cookie;
}

static __always_inline void free_entered(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	__u64 block = argument(ctx, cookie_field(cookie, COOKIE_BLOCK)), size;

	if (!block)
		return;
	saw_file(thread, cookie);
	if (thread->depth && is_inner(ctx, thread, cookie))
		return;
	if (take_block(thread, block, &size)) {
		remember_free(ctx, thread, block, cookie);
		freed(thread, size);
	} else {
		if (is_rest_of_free(ctx, thread, block, cookie) || calls_itself(ctx, cookie))
			return;
		if (may_wrap(thread) && is_passed_on(ctx, thread, block))
			return;
		if (kind_of(cookie) == KIND_FREE_AGAIN)
			remember_free(ctx, thread, block, cookie);
		freed_unrecorded(thread);
	}
	if (may_wrap(thread))
		note_free(ctx, thread, block);
}

/* A function is entered of which that is enough. */
static __always_inline void entered(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	if (kind_of(cookie) != KIND_START)
		free_entered(ctx, thread, cookie);
	else
		saw_file(thread, cookie);
}

#endif
