/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Events that a program ignores on purpose, in tests. */
#ifndef MEMLEAK_MISSES_H
#define MEMLEAK_MISSES_H

#include "core.h"
#include "maps.bpf.h"
#include "memleak.h"

/*
 * Whether to ignore an event at random, as the kernel does by itself now and then (see
 * again.bpf.h).
 */
static __always_inline bool is_ignored(enum task_event event, bool again)
{
	if (misses <= again || bpf_get_prandom_u32() & 1)
		return false;
	__sync_fetch_and_add(&ignored[event][again], 1);
	return true;
}

#endif
