/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The allocator calls that are open in a thread: which are still under way, and which will never
 * return.
 */
#ifndef MEMLEAK_CALLS_H
#define MEMLEAK_CALLS_H

#include "blocks.bpf.h"
#include "cookie.bpf.h"
#include "core.h"
#include "frame.bpf.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/*
 * Whether an open call is still inside its function. This is seen from a call that is entered at
 * `sp` and will return to `back`.
 * The kernel has replaced the open call's return address by the trampoline's. That stands there
 * until the function returns or its frame is gone. A function without return probe keeps its own
 * return address there.
 * On x86 the trampoline's first instructions overwrite the address. So a call that a signal
 * interrupts there is not inside any more, and still returns.
 * On arm64 the return address is in a register until the function calls another one. A tail call
 * finds it in the register.
 * A global function is verified once, and not at each turn of the loops that call it.
 */
SUBPROGRAM int is_inside(struct open_call *call, __u64 sp, __u64 back)
{
	__u64 trampoline = trampoline_of(current_task());

	if (!call)
		return 0;
	/*
	 * Only arm64 uses these. Without a use, clang leaves them undefined in the caller, which
	 * the verifier refuses.
	 */
	barrier_var(sp);
	barrier_var(back);
#if defined(__TARGET_ARCH_x86)
	back = user_word(call->sp);
#else
	if (call->sp != sp)
		return frame_has(call->sp, may_throw(call->cookie) ? call->back : trampoline);
#endif
	if (may_throw(call->cookie) && back == call->back)
		return 1;
	return back == trampoline;
}

/*
 * Whether an open call can never return, because it was jumped out of (siglongjmp, an exception).
 * This is seen from a new call at `sp`. Either the stack has been unwound beyond the open call's
 * frame, or the open call was a signal handler's. Such a call was on the signal stack, and the new
 * one is on the thread's own stack.
 */
SUBPROGRAM int was_unwound(struct open_call *call, __u64 sp, __u64 back, __u64 cookie)
{
	struct task_struct *task = current_task();
	bool call_alt, alt;

	if (!call)
		return 0;
	call_alt = on_signal_stack(task, call->sp);
	alt = on_signal_stack(task, sp);
	if (call_alt != alt)
		return call_alt;
	/*
	 * The call returns by its `ret` alone, and until then its return address stands. A loop
	 * that catches an exception comes back with the same return address, and to the same
	 * function. A tail call never does that.
	 */
	if (may_throw(call->cookie)) {
		if (call->sp == sp)
			return call->cookie == cookie || !is_inside(call, sp, back);
#if defined(__TARGET_ARCH_x86)
		return call->sp < sp || !is_inside(call, sp, back);
#else
		/*
		 * A signal may interrupt the call while its return address is still in the
		 * register.
		 */
		return call->sp < sp;
#endif
	}
	/*
	 * At the same stack pointer, the open call either made a tail call to the new one, or was
	 * replaced by it.
	 */
	return call->sp < sp || (call->sp == sp && !is_inside(call, sp, back));
}

/*
 * An open call by its index; 0 if there is none. The mask repeats the check for the verifier, in a
 * way that clang can neither move nor fold.
 */
static __always_inline struct open_call *open_call_at(struct thread *thread, __u32 at)
{
	__u64 index = at;

	if (at >= MAX_OPEN)
		return 0;
	asm volatile("%0 &= %1" : "+r"(index) : "i"(MAX_OPEN - 1));
	return &thread->open[index];
}

/*
 * Closes the innermost open call, which will never return. A global function is verified once, and
 * not at each place that calls it.
 */
SUBPROGRAM int abandon_call(struct thread *thread)
{
	struct open_call *call;
	struct block old;

	if (!thread)
		return 0;
	call = open_call_at(thread, thread->depth - 1);
	if (!call)
		return 0;
	if (is_free_scope(call->cookie))
		;
	else if (may_throw(call->cookie))
		/* It was left by an exception: it has allocated nothing. */
		thread->sum.failed_allocs++;
	else
		thread->sum.lost_calls++;
	/* It is not known whether the old block was freed. If it was not, its free will come. */
	if (call->old == OLD_RECORDED) {
		/* Before 6.2 the value of a map's entry cannot come from an argument. */
		old = call->old_content;
		record_block(thread, call->old_block, &old);
	}
	thread->depth--;
	return 0;
}

/*
 * Closes several open calls, from the innermost. The loop needs a counter of its own. If the
 * callers had the loop, clang would derive its counter from one that the verifier of 6.12 does not
 * track. Then the verifier would follow the loop up to its limit of a million instructions.
 */
SUBPROGRAM int abandon_calls(struct thread *thread, __u32 calls)
{
	__u32 i;

	if (!thread)
		return 0;
	for (i = 0; i < MAX_OPEN && i < calls; i++)
		abandon_call(thread);
	return 0;
}

/*
 * Whether a function is called from within its file without its symbol. A C library calls its
 * allocator by the symbol, which an interposed allocator could take, except for what is part of the
 * allocator. When a thread ends, glibc frees the thread's cache so: blocks that the program freed
 * long ago.
 */
SUBPROGRAM int is_called_directly(struct pt_regs *ctx __arg_ctx, __u64 cookie)
{
	__u32 index = cookie >> COOKIE_SITE;
	struct site *site = bpf_map_lookup_elem(&sites, &index);
	__u64 back, ip;
#if defined(__TARGET_ARCH_x86)
	struct {
		__u8 unused[3];
		__u8 opcode;
		__s32 relative;
	} call = {};
#else
	__u32 call = 0;
#endif

	if (!ctx || !site)
		return 0;
	back = return_address(ctx);
	ip = PT_REGS_IP(ctx);
	if (!in_text(back, ip, cookie))
		return 0;
#if defined(__TARGET_ARCH_x86)
	bpf_probe_read_user(&call.opcode, 5, (void *)(back - 5));
	return call.opcode == 0xe8 && back + call.relative == ip - site->entry_before;
#else
	bpf_probe_read_user(&call, sizeof(call), (void *)(back - 4));
	/* bl: six bits of opcode, a signed distance of 26 bits in instructions */
	return call >> 26 == 0x25 &&
	       back - 4 + ((__s64)(__s32)(call << 6) >> 4) == ip - site->entry_before;
#endif
}

/*
 * Whether a call that will return to `back` comes from the allocator of the file whose function's
 * probe is at `ip`. The other functions of a C library allocate as a program does, in a signal
 * handler, too. And a handler may end with a jump to an allocator, whose call then returns to the
 * library: to the code that ends handlers.
 */
static __always_inline bool comes_from(struct pt_regs *ctx, __u64 back, __u64 ip, __u64 cookie)
{
	return in_text(back, ip, cookie) &&
	       (in_allocator(back, ip, cookie) || is_called_directly(ctx, probe_cookie(ctx)));
}

/*
 * Whether a call that is being entered is part of one already open, so that counting it would count
 * twice. It is if it is a tail call of the open one, or comes from within the same file. If a
 * signal handler interrupted an allocator, its calls come from elsewhere.
 */
SUBPROGRAM int is_nested(struct pt_regs *ctx __arg_ctx, struct thread *thread, __u64 cookie)
{
	struct open_call *outer;
	__u64 sp, back;
	int i;

	if (!ctx || !thread)
		return 0;
	sp = PT_REGS_SP(ctx);
	back = return_address(ctx);
	for (i = 0; i < MAX_OPEN; i++) {
		outer = open_call_at(thread, thread->depth - 1);
		if (!outer || !was_unwound(outer, sp, back, cookie))
			break;
		abandon_call(thread);
	}
	for (i = 0; i < MAX_OPEN; i++) {
		outer = open_call_at(thread, thread->depth - 1 - i);
		if (!outer)
			break;
		if (!is_inside(outer, sp, back))
			continue;
		if (outer->sp == sp) {
			/*
			 * Not all returns of the outer call are probed. This call's return counts
			 * for both.
			 */
			if (i == 0 && may_throw(outer->cookie) && has_return_probe(cookie)) {
				thread->depth--;
				return 0;
			}
			return 1;
		}
		/*
		 * A tail call of an inner call. That one has a return probe, too, except with
		 * sessions.
		 */
		if (back == trampoline_of(current_task()))
			return 1;
		if (comes_from(ctx, back, outer->ip, outer->cookie)) {
			/*
			 * The outer allocator wraps another one. Calls from the wrapped one are
			 * part of the outer call, too.
			 */
			outer->inner_ip = PT_REGS_IP(ctx);
			outer->inner_cookie = probe_cookie(ctx);
			return 1;
		}
		return outer->inner_ip &&
		       comes_from(ctx, back, outer->inner_ip, outer->inner_cookie);
	}
	return 0;
}

/* Whether an exception has left an open call. If its return address still stands, none has. */
SUBPROGRAM int was_thrown_out_of(struct open_call *call)
{
	__u64 back;

	if (!call || !may_throw(call->cookie) || is_free_scope(call->cookie) ||
	    bpf_probe_read_user(&back, sizeof(back), (void *)call->sp))
		return 0;
#if defined(__TARGET_ARCH_x86)
	return back != call->back;
#else
	return !frame_has(call->sp, call->back);
#endif
}

/*
 * The thread ends. Counts as failed the calls that exceptions have left, if no later call has
 * noticed that. If the return address still stands, the call may be under way, and is not counted.
 */
static __always_inline void count_unwound(struct thread *thread)
{
	struct open_call *call;
	int i;

	for (i = 0; i < MAX_OPEN; i++) {
		call = open_call_at(thread, thread->depth - 1 - i);
		if (!call)
			return;
		if (was_thrown_out_of(call))
			thread->sum.failed_allocs++;
	}
}

#endif
