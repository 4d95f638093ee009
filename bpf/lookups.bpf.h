/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which addresses are blocks. Nearly all of that time is spent waiting for memory: for the bucket
 * of the table of live blocks, and then for the block. The kernel looks one block up after the
 * other. So, before it does, some buckets are read at once, and then the first blocks in them. That
 * halves the time.
 *
 * What is read so is never used. If a kernel has other tables than these, it only saves no time.
 */
#ifndef MEMLEAK_LOOKUPS_H
#define MEMLEAK_LOOKUPS_H

#include "core.h"
#include "maps.bpf.h"
#include "memleak.h"

/* kernel/bpf/hashtab.c: struct bucket begins with a pointer to the first element. */
enum { BUCKET_SIZE = 16, HASH_IN_ELEMENT = 40 };

/* kernel/bpf/helpers.c. With type 0 (6.17), what it returns can be read, whatever the address is.
 */
extern void *bpf_rdonly_cast(const void *address, __u32 type) __ksym __weak;

/* Addresses to look up, and the answers. Mapped into user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_CANDIDATES);
	__type(key, __u32);
	__type(value, struct candidate);
} candidates SEC(".maps");

/* How many are looked up at once. */
enum { LOOK_UPS_AT_ONCE = 16 };

struct looking {
	struct look_up asked;
	__u64 buckets; /* 0: it is not known where they are */
	__u32 bucket_mask;
	__u32 seed;
};

/*
 * Where the buckets are. The verifier lets nothing be computed with a pointer to them. What is read
 * from here is a number to it.
 */
static void *volatile block_buckets;

static __always_inline __u32 rotated(__u32 word, int bits)
{
	return word << bits | word >> (32 - bits);
}

/* The kernel's hash of a key (jhash2 in include/linux/jhash.h, for four words). */
static __always_inline __u32 hash_of(__u64 heap, __u64 address, __u32 seed)
{
	__u32 a = 0xdeadbeef + sizeof(struct block_key) + seed, b = a, c = a;

	a += (__u32)heap;
	b += (__u32)(heap >> 32);
	c += (__u32)address;
	a -= c, a ^= rotated(c, 4), c += b;
	b -= a, b ^= rotated(a, 6), a += c;
	c -= b, c ^= rotated(b, 8), b += a;
	a -= c, a ^= rotated(c, 16), c += b;
	b -= a, b ^= rotated(a, 19), a += c;
	c -= b, c ^= rotated(b, 4), b += a;
	a += (__u32)(address >> 32);
	c ^= b, c -= rotated(b, 14);
	a ^= c, a -= rotated(c, 11);
	b ^= a, b -= rotated(a, 25);
	c ^= b, c -= rotated(b, 16);
	a ^= c, a -= rotated(c, 4);
	b ^= a, b -= rotated(a, 14);
	c ^= b, c -= rotated(b, 24);
	return c;
}

/* Reads the buckets of some candidates from the first one on, and the first block in each. */
static __always_inline void read_ahead(__u32 first, struct looking *looking)
{
	__u64 places[LOOK_UPS_AT_ONCE] = {}, *place;
	struct candidate *candidate;
	__u32 index, hash;

	for (int i = 0; i < LOOK_UPS_AT_ONCE; i++) {
		index = first + i;
		candidate = bpf_map_lookup_elem(&candidates, &index);
		if (!candidate)
			return;
		hash = hash_of(looking->asked.heap, candidate->address, looking->seed);
		places[i] = looking->buckets + (__u64)(hash & looking->bucket_mask) * BUCKET_SIZE;
	}
	for (int i = 0; i < LOOK_UPS_AT_ONCE; i++) {
		place = bpf_rdonly_cast((void *)places[i], 0);
		places[i] = *place + HASH_IN_ELEMENT;
	}
	for (int i = 0; i < LOOK_UPS_AT_ONCE; i++) {
		place = bpf_rdonly_cast((void *)places[i], 0);
		/* Else the compiler would leave that out. */
		asm volatile("" : : "r"(*place));
	}
}

static long look_up_one(__u32 i, struct looking *looking)
{
	__u32 index = looking->asked.first + i;
	struct candidate *candidate = bpf_map_lookup_elem(&candidates, &index);
	struct block_key key = {.heap = looking->asked.heap};
	struct block *block;

	if (!candidate)
		return 1;
	key.address = candidate->address;
	block = bpf_map_lookup_elem(&blocks, &key);
	candidate->size = block ? block->size : NOT_A_BLOCK;
	candidate->stack = block ? block->stack : 0;
	if (block)
		looking->asked.found++;
	return 0;
}

static long look_up_some(__u32 number, struct looking *looking)
{
	__u32 first = number * LOOK_UPS_AT_ONCE;

	if (reads_ahead && looking->buckets)
		read_ahead(looking->asked.first + first, looking);
	for (int i = 0; i < LOOK_UPS_AT_ONCE; i++)
		if (first + i >= looking->asked.count || look_up_one(first + i, looking))
			return 1;
	return 0;
}

static __always_inline void look_up_all(struct look_up *asked)
{
	struct looking looking = {.asked = *asked};
	struct bpf_htab *table = (void *)&blocks;

	looking.asked.found = 0;
	if (reads_ahead && bpf_core_field_exists(table->buckets) &&
	    bpf_core_field_exists(table->n_buckets) && bpf_core_field_exists(table->hashrnd)) {
		block_buckets = table->buckets;
		looking.buckets = (__u64)block_buckets;
		looking.bucket_mask = table->n_buckets - 1;
		looking.seed = table->hashrnd;
	}
	bpf_loop((asked->count + LOOK_UPS_AT_ONCE - 1) / LOOK_UPS_AT_ONCE, look_up_some, &looking,
		 0);
	asked->found = looking.asked.found;
}

#endif
