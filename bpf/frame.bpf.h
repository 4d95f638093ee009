/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a probe can see of the call that it is in: arguments, return address, stack. */
#ifndef MEMLEAK_FRAME_H
#define MEMLEAK_FRAME_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/*
 * The barrier keeps clang from reading at a computed offset in the context, which the verifier
 * refuses.
 */
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
 * Whether `address` is code of the file of the function whose probe is at `ip`. The file's
 * executable segment is mapped in one piece.
 */
static __always_inline bool in_text(__u64 address, __u64 ip, __u64 cookie)
{
	__u32 index = cookie >> COOKIE_SITE;
	struct site *site = bpf_map_lookup_elem(&sites, &index);

	return site && address >= ip - site->text_before && address < ip + site->text_after;
}

/* The same for the code of the file's allocator. */
static __always_inline bool in_allocator(__u64 address, __u64 ip, __u64 cookie)
{
	__u32 index = cookie >> COOKIE_SITE;
	struct site *site = bpf_map_lookup_elem(&sites, &index);

	return site && address >= ip - site->own_before && address < ip + site->own_after;
}

static __always_inline bool on_signal_stack(struct task_struct *task, __u64 sp)
{
	return sp - task_field(task, sas_ss_sp) < task_field(task, sas_ss_size);
}

/* The address that the kernel writes over return addresses. */
static __always_inline __u64 trampoline_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, mm, uprobes_state.xol_area, vaddr);
}

#if !defined(__TARGET_ARCH_x86)
/* The bits of an address. The bits above may hold a signature (pointer authentication). */
#define ADDRESS_BITS ((1ULL << 48) - 1)

/* How far below its caller's stack pointer a function keeps its return address, at the most. */
enum { FRAME_SEARCHED = 1024, FRAME_AT_ONCE = 128 };

/*
 * Whether `address` is in the frame of a function that was entered with this stack pointer. A
 * function that calls others has stored its return address somewhere in its frame.
 */
SUBPROGRAM int frame_has(__u64 sp, __u64 address)
{
	__u64 words[FRAME_AT_ONCE / 8];
	__u64 at = sp & -FRAME_AT_ONCE;
	int i, j;

	/* Each piece lies within a page, because the next page may not be mapped. */
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

#endif
