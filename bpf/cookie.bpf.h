/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a probe's cookie says of its function. */
#ifndef MEMLEAK_COOKIE_H
#define MEMLEAK_COOKIE_H

#include "core.h"
#include "memleak.h"

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

static __always_inline bool has_return_probe(__u64 cookie)
{
	__u32 kinds = 1 << KIND_ALLOC | 1 << KIND_REALLOC | 1 << KIND_RESIZE | 1 << KIND_REALLOCF;

	return kinds >> kind_of(cookie) & 1;
}

#endif
