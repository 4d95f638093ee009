/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a call of an allocator function does to the counters. Entry and return are told apart by the
 * programs in memleak.bpf.c; who runs in which heap is the business of lifecycle.bpf.h.
 */
#ifndef MEMLEAK_ALLOC_H
#define MEMLEAK_ALLOC_H

#ifdef OLDER_KERNELS
#include "older.bpf.h"
#else
#include "newer.bpf.h"
#endif

/* A product of size and count that wraps: the call is bound to fail. */
#define SIZE_OVERFLOW (~0ULL)

/* Bytes between the stack pointer at entry and the one after return: `ret` pops the return address.
 */
#if defined(__TARGET_ARCH_x86)
#define RETURN_POPS 8
#else
#define RETURN_POPS 0
#endif

static __always_inline __u32 cookie_field(__u64 cookie, __u32 shift)
{
	return (cookie >> shift) & 0xf;
}

static __always_inline __u32 kind_of(__u64 cookie)
{
	return cookie_field(cookie, COOKIE_KIND);
}

/*
 * Functions that may throw carry no return probe: the unwinder does not know the trampoline, and
 * the program would die of an exception that it would have caught. Their returns are probes of
 * their own, on each `ret`; an exception that leaves them is noticed later.
 */
static __always_inline bool may_throw(__u64 cookie)
{
	__u32 kinds = 1 << KIND_NEW | 1 << KIND_RENEW | 1 << KIND_FREE_SCOPE_THROWS;

	return kinds >> kind_of(cookie) & 1;
}

static __always_inline bool is_free_scope(__u64 cookie)
{
	__u32 kinds = 1 << KIND_FREE_SCOPE | 1 << KIND_FREE_SCOPE_THROWS;

	return kinds >> kind_of(cookie) & 1;
}

/* The barrier keeps clang from reading at a computed place in the context, which the verifier
 * refuses. */
#define ARGUMENT(n)                                                                                \
	case n: {                                                                                  \
		__u64 value = PT_REGS_PARM##n(ctx);                                                \
		barrier_var(value);                                                                \
		return value;                                                                      \
	}

static __always_inline __u64 argument(struct pt_regs *ctx, __u32 n)
{
	switch (n) {
		ARGUMENT(1)
		ARGUMENT(2)
		ARGUMENT(3)
		ARGUMENT(4)
		ARGUMENT(5)
	}
	return 0;
}

/* The current thread, if it runs in a heap that is counted. */
static __always_inline struct thread *current_thread(void)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task);

	if (thread && thread->heap)
		return thread;
	if (scope == SCOPE_TREE || !join())
		return 0;
	return thread_of(task);
}

/* Remembers in the heap that it has a probed file: the row names its allocators. Whether it does.
 */
FUNCTION int add_file(struct heap *heap, __u32 file)
{
	int i;

	if (!heap)
		return 0;
	for (i = 0; i < HEAP_FILES && i < heap->file_count; i++) {
		if (heap->files[i] == file)
			return 1;
	}
	return append_file(heap, file);
}

/* The thread has seen all that its heap remembers. */
static __always_inline void knows_files(struct thread *thread, struct heap *heap)
{
	int i;

	for (i = 0; i < HEAP_FILES && i < heap->file_count; i++)
		thread->files |= 1ULL << (heap->files[i] & 63);
}

/* The same, from a function of the file that is at work. */
static __always_inline void saw_file(struct thread *thread, __u64 cookie)
{
	__u32 file = (cookie >> COOKIE_FILE) & (MAX_FILES - 1);
	__u64 bit = 1ULL << (file & 63);
	struct heap *heap;

	if (thread->files & bit)
		return;
	heap = heap_by_id(thread->heap);
	if (!heap)
		return;
	if (add_file(heap, file))
		thread->files |= bit;
}

static __always_inline void allocated(struct thread *thread, __u64 address, __u64 size)
{
	struct heap *heap;

	thread->sum.alloc_bytes += size;
	thread->sum.alloc_count++;
	if (record_block(thread, address, size)) {
		heap = heap_by_id(thread->heap);
		if (heap) {
			__sync_fetch_and_add(&heap->lost_bytes, size);
			__sync_fetch_and_add(&heap->lost_blocks, 1);
		}
		return;
	}
	live_grows(thread, size);
}

static __always_inline void freed(struct thread *thread, __u64 size)
{
	thread->sum.free_bytes += size;
	thread->sum.free_count++;
	live_shrinks(thread, size);
}

/*
 * A block that is not in the table: one that did not fit, as long as there are any; else one that
 * this heap never allocated.
 */
static __always_inline void freed_unrecorded(struct thread *thread)
{
	struct heap *heap = heap_by_id(thread->heap);

	if (heap && heap->lost_blocks > heap->lost_freed) {
		__sync_fetch_and_add(&heap->lost_freed, 1);
		thread->sum.free_count++;
		return;
	}
	thread->sum.unknown_frees++;
}

static __always_inline __u64 user_word(__u64 address)
{
	__u64 word = 0;

	bpf_probe_read_user(&word, sizeof(word), (void *)address);
	return word;
}

/* Where a function that is being entered will return to. */
static __always_inline __u64 return_address(struct pt_regs *ctx)
{
#if defined(__TARGET_ARCH_x86)
	return user_word(PT_REGS_SP(ctx));
#else
	return PT_REGS_RET(ctx);
#endif
}

/*
 * Whether `address` is code of the file of the function whose probe is at `ip`: its executable
 * segment is mapped in one piece.
 */
static __always_inline bool in_text(__u64 address, __u64 ip, __u64 cookie)
{
	__u32 index = cookie >> COOKIE_SITE;
	struct site *site = bpf_map_lookup_elem(&sites, &index);

	return site && address >= ip - site->text_before && address < ip + site->text_after;
}

static __always_inline bool on_signal_stack(struct task_struct *task, __u64 sp)
{
	return sp - task_field(task, sas_ss_sp) < task_field(task, sas_ss_size);
}

/* What the kernel puts in the place of return addresses. */
static __always_inline __u64 trampoline_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, mm, uprobes_state.xol_area, vaddr);
}

#if !defined(__TARGET_ARCH_x86)
/* The bits of an address. Above them may be a signature (pointer authentication). */
#define ADDRESS_BITS ((1ULL << 48) - 1)

/* How far below its caller's stack pointer a function keeps its return address, at the most. */
enum { FRAME_SEARCHED = 1024, FRAME_AT_ONCE = 128 };

/*
 * Whether `address` stands in the frame of a function that was entered with this stack pointer. A
 * function that calls others has put its return address somewhere there.
 */
FUNCTION int frame_has(__u64 sp, __u64 address)
{
	__u64 words[FRAME_AT_ONCE / 8];
	__u64 at = sp & -FRAME_AT_ONCE;
	int i, j;

	/* In pieces that lie within a page: the next one need not be there. */
	for (i = 0; i <= FRAME_SEARCHED / FRAME_AT_ONCE; i++, at -= FRAME_AT_ONCE) {
		if (bpf_probe_read_user(words, sizeof(words), (void *)at))
			return 0;
		for (j = 0; j < FRAME_AT_ONCE / 8; j++) {
			if (at + j * 8 < sp && !((words[j] ^ address) & ADDRESS_BITS))
				return 1;
		}
	}
	return 0;
}
#endif

/*
 * Whether an open call is still inside its function, seen from one that is entered at `sp` and will
 * return to `back`: the kernel has replaced its return address by the trampoline's, and it stands
 * there until the function returns or its frame is gone. On x86 the trampoline's first instructions
 * write over it, so a call that a signal interrupts there is not inside any more, and returns all
 * the same. A function without return probe keeps its own return address there. On arm64 the return
 * address is in a register, where a tail call finds it, until the function calls another one.
 */
static __always_inline bool is_inside(struct task_struct *task, struct open_call *call, __u64 sp,
				      __u64 back)
{
	__u64 trampoline = trampoline_of(task);

#if defined(__TARGET_ARCH_x86)
	back = user_word(call->sp);
#else
	if (call->sp != sp)
		return frame_has(call->sp, may_throw(call->cookie) ? call->back : trampoline);
#endif
	if (may_throw(call->cookie) && back == call->back)
		return true;
	return back == trampoline;
}

/*
 * Whether an open call can never return, seen from a new one at `sp`: it was jumped out of
 * (siglongjmp, an exception). Either its frame lies where the stack has been unwound since, or it
 * was a handler's, on the signal stack, and we are back on the thread's own.
 */
static __always_inline bool is_gone(struct task_struct *task, struct open_call *call, __u64 sp,
				    __u64 back, __u64 cookie)
{
	bool call_alt = on_signal_stack(task, call->sp), alt = on_signal_stack(task, sp);

	if (call_alt != alt)
		return call_alt;
	/* It returns by its `ret` alone, and until then its return address stands. A loop that
	 * catches comes back with the same one, but by the same function, which no tail call
	 * does. */
	if (may_throw(call->cookie)) {
		if (call->sp == sp)
			return call->cookie == cookie || !is_inside(task, call, sp, back);
#if defined(__TARGET_ARCH_x86)
		return call->sp < sp || !is_inside(task, call, sp, back);
#else
		/* A signal may find it with its return address still in the register. */
		return call->sp < sp;
#endif
	}
	/* At the same place it is either the caller, by a tail call, or replaced by this one. */
	return call->sp < sp || (call->sp == sp && !is_inside(task, call, sp, back));
}

/*
 * An open call by its index, if there is one. The mask says again what the check says, in a way
 * that clang can neither move nor fold, for the verifier.
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
 * Closes the innermost open call, which will never return. Global functions, as this one, are
 * verified once and not at each place that calls them.
 */
FUNCTION int abandon(struct thread *thread)
{
	struct open_call *call;

	if (!thread)
		return 0;
	call = open_call_at(thread, thread->depth - 1);
	if (!call)
		return 0;
	if (is_free_scope(call->cookie))
		;
	else if (may_throw(call->cookie))
		/* By its exception: it has allocated nothing. */
		thread->sum.failed_allocs++;
	else
		thread->sum.lost_calls++;
	/* Nobody knows whether the block is gone; if it is not, its free will come. */
	if (call->old == OLD_RECORDED)
		record_block(thread, call->old_block, call->old_size);
	thread->depth--;
	return 0;
}

/*
 * The same for so many. With the callers' own counter as the loop's, which clang derives from one
 * that the verifier of 6.12 knows nothing of, it goes round until its limit of a million
 * instructions.
 */
FUNCTION int abandon_newest(struct thread *thread, __u32 calls)
{
	__u32 i;

	if (!thread)
		return 0;
	for (i = 0; i < MAX_OPEN && i < calls; i++)
		abandon(thread);
	return 0;
}

static __always_inline bool has_return_probe(__u64 cookie)
{
	__u32 kinds = 1 << KIND_ALLOC | 1 << KIND_REALLOC | 1 << KIND_RESIZE | 1 << KIND_REALLOCF;

	return kinds >> kind_of(cookie) & 1;
}

/*
 * Whether a call that is being entered is part of one already open, so that counting it would count
 * twice: a tail call of it, or a call from within the same file. A signal handler that interrupted
 * an allocator calls from elsewhere.
 */
FUNCTION int is_inner(struct pt_regs *ctx __arg_ctx, struct thread *thread, __u64 cookie)
{
	struct task_struct *task = current_task();
	struct open_call *outer;
	__u64 sp, back;
	int i;

	if (!ctx || !thread)
		return 0;
	sp = PT_REGS_SP(ctx);
	back = return_address(ctx);
	for (i = 0; i < MAX_OPEN; i++) {
		outer = open_call_at(thread, thread->depth - 1);
		if (!outer || !is_gone(task, outer, sp, back, cookie))
			break;
		abandon(thread);
	}
	for (i = 0; i < MAX_OPEN; i++) {
		outer = open_call_at(thread, thread->depth - 1 - i);
		if (!outer)
			break;
		if (!is_inside(task, outer, sp, back))
			continue;
		if (outer->sp == sp) {
			/* Returns of the outer one are not all probed: this one tells of both. */
			if (i == 0 && may_throw(outer->cookie) && has_return_probe(cookie)) {
				thread->depth--;
				return 0;
			}
			return 1;
		}
		/* A tail call of an inner one, which has a return probe, too, but with sessions. */
		if (back == trampoline_of(task))
			return 1;
		if (in_text(back, outer->ip, outer->cookie)) {
			/* One that wraps another: what that calls is a part of the call, too. */
			outer->inner_ip = PT_REGS_IP(ctx);
			outer->inner_cookie = own_cookie(ctx);
			return 1;
		}
		return outer->inner_ip && in_text(back, outer->inner_ip, outer->inner_cookie);
	}
	return 0;
}

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
static __always_inline void old_block_gone(struct thread *thread, struct open_call *call)
{
	if (call->old == OLD_RECORDED)
		freed(thread, call->old_size);
	else if (call->old == OLD_UNRECORDED)
		freed_unrecorded(thread);
}

/* A function with a return is entered. Returns whether its return is wanted. */
static __always_inline bool enter(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	__u32 n, depth;
	struct open_call *call;
	__u64 size, count;

	saw_file(thread, cookie);
	if (thread->depth && is_inner(ctx, thread, cookie))
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
			old_block_gone(thread, call);
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
		old_block_gone(thread, call);
		allocated(thread, block, call->size);
	} else if (call->old != OLD_NONE && !call->size) {
		/* realloc(p, 0) that frees. */
		old_block_gone(thread, call);
	} else {
		thread->sum.failed_allocs++;
		if (kind == KIND_REALLOCF)
			old_block_gone(thread, call);
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
		abandon_newest(thread, i);
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
		abandon_newest(thread, i);
	if (kind_of(cookie) == KIND_RETURN) {
		close_call(thread, call, PT_REGS_RC(ctx));
		return;
	}
	scope = is_free_scope(call->cookie);
	failed = thread->sum.failed_allocs;
	abandon(thread);
	thread->sum.failed_allocs = failed;
	if (!scope)
		thread->sum.lost_calls++;
}

/* An allocation that can only be told to have been asked for. */
static __always_inline void unfollowed(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
{
	saw_file(thread, cookie);
	if (!thread->depth || !is_inner(ctx, thread, cookie))
		thread->sum.lost_calls++;
}

/*
 * Counts as failed what exceptions have left, and nobody has noticed since: the thread ends. Where
 * the return address still stands, the call may be under way, and is no more than that.
 */
static __always_inline void close_left(struct thread *thread)
{
	struct open_call *call;
	__u64 back;
	int i;

	for (i = 0; i < MAX_OPEN; i++) {
		call = open_call_at(thread, thread->depth - 1 - i);
		if (!call)
			return;
		if (!may_throw(call->cookie) || is_free_scope(call->cookie) ||
		    bpf_probe_read_user(&back, sizeof(back), (void *)call->sp))
			continue;
#if defined(__TARGET_ARCH_x86)
		if (back != call->back)
#else
		if (!frame_has(call->sp, call->back))
#endif
			thread->sum.failed_allocs++;
	}
}

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

/* A function that may throw, at its entry or at one of the places where it returns. */
static __always_inline void reached(struct pt_regs *ctx, struct thread *thread, __u64 cookie)
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
