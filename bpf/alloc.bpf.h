/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a call of an allocator function does to the counters. Entry and return are told apart by the
 * programs in memleak.bpf.c; who runs in which heap is the business of lifecycle.bpf.h.
 */
#ifndef MEMLEAK_ALLOC_H
#define MEMLEAK_ALLOC_H

#include "blocks.bpf.h"
#include "calls.bpf.h"
#include "cookie.bpf.h"
#include "core.h"
#include "counts.bpf.h"
#include "frame.bpf.h"
#include "heap_files.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/* A product of size and count that wraps: the call is bound to fail. */
#define SIZE_OVERFLOW (~0ULL)

/* Bytes between the stack pointer at entry and the one after return: `ret` pops the return address.
 */
#if defined(__TARGET_ARCH_x86)
#define RETURN_POPS 8
#else
#define RETURN_POPS 0
#endif

static __always_inline __u64 product(__u64 size, __u64 count)
{
	__u64 most;

	/* Both below 2^32: the product fits, without the division. */
	if ((size | count) >> 32 && count) {
		most = SIZE_OVERFLOW / count;
		/* Else clang makes this a 128-bit multiplication, which BPF does not have. */
		barrier_var(most);
		if (size > most)
			return SIZE_OVERFLOW;
	}
	return size * count;
}

/* The block that a realloc replaced or freed, or a free with a return. */
static __always_inline void count_old_block(struct thread *thread, struct open_call *call)
{
	if (call->old == OLD_RECORDED)
		count_free(thread, call->old_size);
	else if (call->old == OLD_UNRECORDED)
		count_unrecorded_free(thread);
}

/* A function with a return is entered. Returns whether its return is wanted. */
static __always_inline bool enter(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	__u32 n, depth;
	struct open_call *call;
	__u64 size, count;

	note_file(thread, cookie);
	if (thread->depth && is_nested(ctx, thread, cookie))
		return false;
	depth = thread->depth;
	if (depth >= MAX_OPEN) {
		thread->sum.lost_calls++;
		return false;
	}
	call = &thread->open[depth];
	thread->depth = depth + 1;

	size = argument(ctx, cookie_field(cookie, COOKIE_SIZE));
	n = cookie_field(cookie, COOKIE_COUNT);
	if (n) {
		count = argument(ctx, n);
		size = product(size, count);
	}
	call->sp = PT_REGS_SP(ctx);
	call->ip = PT_REGS_IP(ctx);
	call->size = size;
	call->cookie = cookie;
	call->inner_ip = 0;
	call->out = argument(ctx, cookie_field(cookie, COOKIE_OUT));
	call->old = OLD_NONE;
	n = cookie_field(cookie, COOKIE_BLOCK);
	if (n) {
		/* Out before anyone can be handed its address again. */
		call->old_block = argument(ctx, n);
		if (call->old_block)
			call->old = take_block(thread, call->old_block, &call->old_size)
					? OLD_RECORDED
					: OLD_UNRECORDED;
		if (is_free_scope(cookie)) {
			count_old_block(thread, call);
			call->old = OLD_NONE;
		}
	}
	return true;
}

/* The same for one that may throw. */
static __always_inline void enter_throwing(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	struct open_call *call;

	if (!enter(ctx, thread, cookie))
		return;
	call = open_call_at(thread, thread->depth - 1);
	if (call)
		call->back = return_address(ctx);
}

/* An open call is closed by its return, which gave `result`. */
static __always_inline void close_call(struct thread *thread, struct open_call *call, __u64 result)
{
	__u32 kind = kind_of(call->cookie);
	__u64 block = result;

	thread->depth--;
	if (call->out)
		/* posix_memalign stores the block and returns 0, or an error number. */
		block = (__u32)block ? 0 : user_word(call->out);
	if (kind > KIND_REALLOC) {
		if (kind == KIND_RESIZE)
			block = result < call->size ? 0 : call->old_block;
		if (is_free_scope(call->cookie))
			return;
	}
	if (block) {
		count_old_block(thread, call);
		count_allocation(thread, block, call->size);
	} else if (call->old != OLD_NONE && !call->size) {
		/* realloc(p, 0) that frees. */
		count_old_block(thread, call);
	} else {
		thread->sum.failed_allocs++;
		if (kind == KIND_REALLOCF)
			count_old_block(thread, call);
		else if (call->old == OLD_RECORDED)
			record_block(thread, call->old_block, call->old_size);
	}
}

/*
 * A function returns. `cookie` says which, or is 0 where only functions return whose entry asked
 * for it; else the return may be that of an inner call, at the same stack pointer.
 */
static __always_inline void leave(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	__u64 sp = PT_REGS_SP(ctx) - RETURN_POPS;
	struct open_call *call;
	int i;

	for (i = 0; i < MAX_OPEN; i++) {
		call = open_call_at(thread, thread->depth - 1 - i);
		if (!call)
			return;
		if (call->sp == sp && (!cookie || call->cookie == cookie))
			goto found;
	}
	return;
found:
	/* What was entered later was jumped out of on the way to this return. */
	if (i)
		abandon_calls(thread, i);
	close_call(thread, call, PT_REGS_RC(ctx));
}

/*
 * A place that only a function that may throw and is about to leave its frame comes to, or one that
 * nobody followed: with its stack pointer at what it was at the entry.
 */
static __always_inline void leave_throwing(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	__u64 sp = PT_REGS_SP(ctx), failed;
	struct open_call *call;
	bool scope;
	int i;

	for (i = 0; i < MAX_OPEN; i++) {
		call = open_call_at(thread, thread->depth - 1 - i);
		if (!call)
			return;
		if (call->sp == sp && may_throw(call->cookie))
			goto found;
	}
	return;
found:
	if (i)
		abandon_calls(thread, i);
	if (kind_of(cookie) == KIND_RETURN) {
		close_call(thread, call, PT_REGS_RC(ctx));
		return;
	}
	scope = is_free_scope(call->cookie);
	failed = thread->sum.failed_allocs;
	abandon_call(thread);
	thread->sum.failed_allocs = failed;
	if (!scope)
		thread->sum.lost_calls++;
}

/* An allocation that can only be told to have been asked for. */
static __always_inline void unfollowed(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	note_file(thread, cookie);
	if (!thread->depth || !is_nested(ctx, thread, cookie))
		thread->sum.lost_calls++;
}

/* A function that may throw, at its entry or at one of the places where it returns. */
static __always_inline void at_throwing(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	switch (kind_of(cookie)) {
	case KIND_RETURN:
	case KIND_LEFT:
		leave_throwing(ctx, thread, cookie);
		break;
	case KIND_UNFOLLOWED:
		unfollowed(ctx, thread, cookie);
		break;
	default:
		enter_throwing(ctx, thread, cookie);
	}
}

#endif
