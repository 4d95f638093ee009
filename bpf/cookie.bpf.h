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
 * Functions that may throw have no return probe. The unwinder does not know the trampoline, so an
 * exception that the program would have caught would kill it. Instead, each `ret` has a probe. If
 * an exception leaves the function, a later probe notices that.
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
