/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a call of an allocator function does to the counters. The programs in memleak.bpf.c and
 * probes.bpf.h tell entry and return apart. Which task uses which heap is decided in
 * lifecycle.bpf.h.
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
#include "inside.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/* Stands for a product of size and count that overflows. The call is bound to fail. */
#define SIZE_OVERFLOW (~0ULL)

/*
 * Bytes between the stack pointer at entry and after return: on x86 `ret` pops the return address.
 */
#if defined(__TARGET_ARCH_x86)
#define RETURN_POPS 8
#else
#define RETURN_POPS 0
#endif

static __always_inline __u64 product(__u64 size, __u64 count)
{
	__u64 most;

	/* If both are below 2^32, the product fits, and needs no division. */
	if ((size | count) >> 32 && count) {
		most = SIZE_OVERFLOW / count;
		/* Otherwise clang makes this a 128-bit multiplication, which BPF does not have. */
		barrier_var(most);
		if (size > most)
			return SIZE_OVERFLOW;
	}
	return size * count;
}

/*
 * Counts the free of the block that a realloc replaced or freed, or that a free with a return probe
 * frees. A global function is verified once, and not at each place that calls it.
 */
SUBPROGRAM int count_old_block(struct thread *thread, struct open_call *call)
{
	if (!thread || !call)
		return 0;
	if (call->old == OLD_RECORDED)
		count_free(thread, &call->old_content);
	else if (call->old == OLD_UNRECORDED)
		count_unrecorded_free(thread);
	return 0;
}

/* Entry of a function with a return. Returns whether its return has to be probed. */
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
	call->inside_allocs = begin_beside_inside(thread->heap);
	call->out = argument(ctx, cookie_field(cookie, COOKIE_OUT));
	call->old = OLD_NONE;
	n = cookie_field(cookie, COOKIE_BLOCK);
	if (n) {
		/* Taken out before another thread can get its address again. */
		call->old_block = argument(ctx, n);
		if (call->old_block)
			call->old = take_block(thread, call->old_block, &call->old_content)
					? OLD_RECORDED
					: OLD_UNRECORDED;
		if (is_free_scope(cookie)) {
			count_old_block(thread, call);
			call->old = OLD_NONE;
		}
	}
	return true;
}

/* The same for a function that may throw. */
static __always_inline void enter_throwing(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	struct open_call *call;

	if (!enter(ctx, thread, cookie))
		return;
	call = open_call_at(thread, thread->depth - 1);
	if (call)
		call->back = return_address(ctx);
}

/* Closes an open call whose function has returned, or is about to (`at_ret`). */
static __always_inline void close_call(struct pt_regs *ctx, struct thread *thread,
				       struct open_call *call, bool at_ret)
{
	__u64 result = PT_REGS_RC(ctx), block = result;
	__u32 kind = kind_of(call->cookie), stack = 0;

	thread->depth--;
	end_beside_inside(thread->heap, call->inside_allocs);
	if (call->out)
		/* posix_memalign stores the block, and returns 0 or an error number. */
		block = (__u32)block ? 0 : user_word(call->out);
	if (kind > KIND_REALLOC) {
		if (kind == KIND_RESIZE)
			block = result < call->size ? 0 : call->old_block;
		if (is_free_scope(call->cookie))
			return;
	}
	if (block) {
		if (call->old != OLD_NONE)
			count_old_block(thread, call);
		if (stacks)
			stack = stack_of(ctx, thread, at_ret);
		count_allocation(thread, block, call->size, stack);
	} else if (call->old != OLD_NONE && !call->size) {
		/* realloc(p, 0) that frees. */
		count_old_block(thread, call);
	} else {
		thread->sum.failed_allocs++;
		if (kind == KIND_REALLOCF)
			count_old_block(thread, call);
		else if (call->old == OLD_RECORDED)
			record_block(thread, call->old_block, &call->old_content);
	}
}

/*
 * Return of a function. `cookie` names the function. It is 0 where a return is probed only if the
 * entry asked for it. Otherwise the return may be that of an inner call at the same stack pointer.
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
	/* Calls that were entered later were jumped out of on the way to this return. */
	if (i)
		abandon_calls(thread, i);
	close_call(ctx, thread, call, false);
}

/*
 * A place where a function that may throw leaves its frame, or a jump that was not followed. Here
 * the stack pointer is the same as at the entry.
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
		close_call(ctx, thread, call, true);
		return;
	}
	scope = is_free_scope(call->cookie);
	failed = thread->sum.failed_allocs;
	abandon_call(thread);
	thread->sum.failed_allocs = failed;
	if (!scope)
		thread->sum.lost_calls++;
}

/* An allocation of which only the entry is known. */
static __always_inline void unfollowed(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	note_file(thread, cookie);
	if (!thread->depth || !is_nested(ctx, thread, cookie))
		thread->sum.lost_calls++;
}

/* A function that may throw: its entry, or one of the places where it returns. */
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
