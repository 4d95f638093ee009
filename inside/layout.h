/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What inside.c keeps in a process. The kernel side reads it when the process's image ends. Sizes
 * are in bytes.
 */
#ifndef INSIDE_LAYOUT_H
#define INSIDE_LAYOUT_H

enum inside_limits {
	/* Lines that belong to one thread each. */
	OWN_LINES = 448,
	/* Lines for all further threads. */
	SHARED_LINES = 64,
	LINES = OWN_LINES + SHARED_LINES,
	LINES_IN_PAGE = 64,
	/* A leaf covers 4 MB of memory, with a cell for each 32 bytes: the smallest chunk. */
	ZONE_BITS = 22,
	CELL_BITS = 5,
	LEAF_SIZE = 1 << (ZONE_BITS - CELL_BITS),
	/* Zones that have a leaf: 64 GB of heap, if it is dense. A power of two. */
	LEAVES = 16384,
	/* Leaves that are made at once. The first ones take no system call. */
	POOL = 8,
	/*
	 * Chunks of this size and more are kept aside. For a large block of which little is used, a
	 * cell would cost a page.
	 */
	LARGE = 65536,
	/* Buckets for large blocks: a power of two. */
	BUCKETS = 1024,
	IN_BUCKET = 4,
	/* Of a cell: the block's slack plus 1; 0 if no block begins there. */
	SLACK_MASK = 127,
	/* The next SLACK_BYTES cells hold the slack. */
	LONG_SLACK = 127,
	SLACK_BYTES = 6,
	/* Of a cell: the block begins in its second half. */
	SECOND_HALF = 128,
	/* Of an entry in the table of leaves: the leaf's page is above the zone's number. */
	ZONE_NUMBER_BITS = 47 - ZONE_BITS,
	PAGE_BITS = 12,
};

#define INSIDE_MAGIC 0x316b61656c6d656dULL /* "memleak1" */

enum state_flags {
	LINES_SHARED = 1,    /* shared lines are in use */
	LINES_NOT_WIPED = 2, /* a child of fork does not begin with zeros */
	CHUNKS_ODD = 4,	     /* the allocator's chunks do not look as expected */
};

/* What one thread has counted. A cache line, so that threads do not disturb each other. */
struct line {
	__u64 allocs;
	__u64 alloc_bytes;
	__u64 frees;
	__u64 unknown_frees;
	__u64 failed;
	__s64 live;  /* bytes; below 0 in a thread that frees others' blocks */
	__s64 open;  /* calls that were entered and have not returned */
	__u64 ready; /* used in this process, since its fork */
};

/* A large block. */
struct large {
	__u64 block;
	__u64 slack;
};

/* Survives a fork. It has a page for itself. */
struct state {
	__u64 magic;
	__u32 started;
	__u32 flags;   /* enum state_flags */
	__u32 threads; /* that have asked for a line, in this process and before its fork */
	__u32 pad;
	/* Leaves that nobody has taken: the address of the first, plus how many there are. */
	__u64 pool;
} __attribute__((aligned(4096)));

/* What all threads of a process share. */
struct wiped_head {
	__u64 peak;
	__u64 several; /* there have been several threads: the peak is unknown */
	__u64 unrecorded;
	__u64 unrecorded_bytes;
	__u64 crossed; /* calls that began in the parent and ended in the child of a fork */
	__u64 told;    /* the kernel side was told of this process */
	__u64 pad[2];
};

/* A child of fork begins with zeros. */
struct wiped {
	struct wiped_head head;
	struct line lines[LINES];
	struct large large[BUCKETS][IN_BUCKET];
} __attribute__((aligned(4096)));

struct memory {
	struct state state;
	/* By zone: its leaf (see leaf_entry in inside.c), which stays for good. */
	__u64 leaves[LEAVES];
	struct wiped wiped;
	__u8 pool[POOL][LEAF_SIZE];
};

#endif
