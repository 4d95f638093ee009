/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What kernel and user space say to each other, declared once: Rust gets these types from the BTF
 * of the compiled object. All sizes are bytes, all times nanoseconds of CLOCK_MONOTONIC.
 */
#ifndef MEMLEAK_H
#define MEMLEAK_H

#include "core.h"

enum limits {
	COMM_LEN = 16,
	/* Longest name of an executable that is kept; a longer one is unknown. */
	EXE_LEN = 1024,
	/* One path component (NAME_MAX) and its NUL: the slack that a last append may need. */
	NAME_LEN = 256,
	/* Files with probes: what a cookie has room for. */
	MAX_FILES = 4096,
	/* Functions with probes, over all files. */
	MAX_SITES = 32768,
	/* Files with probes that one heap can name. */
	HEAP_FILES = 16,
	/* Stands for no file. */
	NO_INDEX = 0xffffffff,
	/* How long a process may be held for files that it has mapped to be examined. */
	HOLD_SECONDS = 2,
	/* Allocator calls open at one time in one thread: a call, one more in a signal handler, …
	 */
	MAX_OPEN = 8,
	/* Frees entered at one time in one thread: the same, where one allocator wraps another. */
	MAX_FREES = 4,
	/* A power of two: heaps with several tasks at one time that need not look their heap up. */
	LIVE_CELLS = 4096,
	/* Control groups that -a can be limited to. */
	MAX_CGROUPS = 8,
	/* States of the automaton that knows the command names that -a is limited to. */
	NAME_STATES = 128,
};

/* Who is followed. */
enum scope {
	SCOPE_TREE,   /* a command, from its exec on, and all that it starts */
	SCOPE_CHOSEN, /* processes that are there, named by their ids, and all that they start */
	SCOPE_ALL,    /* every process of the machine but memleak, or those that the filters want */
};

/* What the kernel tells of tasks. */
enum task_event {
	TASK_FORKED,
	TASK_EXECUTED,
	TASK_EXITED,
	TASK_ARRIVED, /* what it has executed has files that may not be known */
	TASK_EVENTS,
};

/* What a probed function does. */
enum kind {
	KIND_ALLOC = 1,	  /* returns (or stores) a new block */
	KIND_REALLOC = 2, /* replaces a block */
	KIND_FREE = 3,
	KIND_START = 4, /* allocates nothing; its call shows that the image uses the file */
	/* As KIND_ALLOC and KIND_REALLOC, but it may throw: no return probe (see alloc.bpf.h). */
	KIND_NEW = 5,
	KIND_RENEW = 6,
	KIND_RESIZE = 7,   /* changes a block's size where it is, and returns the size it has */
	KIND_REALLOCF = 8, /* as KIND_REALLOC, but frees the old block if it fails */
	/* A free whose own calls of other allocators are part of it, up to its return. */
	KIND_FREE_SCOPE = 9,
	KIND_FREE_SCOPE_THROWS = 10,
	/* Places in the code of functions that may throw: */
	KIND_RETURN = 11, /* its `ret` */
	KIND_LEFT = 12,	  /* a jump to code that was not followed */
	/* A function that may throw, of which not even that is known. */
	KIND_UNFOLLOWED = 13,
	/* As KIND_FREE, and it may begin again at its entry: glibc 2.43 does, if a thread's
	 * first call of it has to make the thread's cache. */
	KIND_FREE_AGAIN = 14,
};

/*
 * A probe's cookie: everything its program must know about the function. Arguments are counted from
 * 1, 0 is "has none".
 */
enum cookie_bits {
	COOKIE_KIND = 0,   /* 4 bits: enum kind */
	COOKIE_SIZE = 4,   /* 4 bits: the argument with the size */
	COOKIE_COUNT = 8,  /* 4 bits: the argument to multiply it by */
	COOKIE_BLOCK = 12, /* 4 bits: the argument with the old block */
	COOKIE_OUT = 16,   /* 4 bits: the argument that points to where the block is stored */
	COOKIE_FILE = 20,  /* 12 bits: index of the file */
	COOKIE_SITE = 32,  /* 32 bits: index in the table of sites */
};

/*
 * What stands where a program is to have its probe's cookie, on kernels that do not tell programs
 * any. No cookie is like it: it is of no kind.
 */
enum placeholder {
	PLACEHOLDER_LOW = 0x65616b00,
	PLACEHOLDER_HIGH = 0x6d656d6c,
};

/* Where a probe's file lies around the probe, in bytes: to tell calls from within the file. */
struct site {
	__u64 text_before;  /* from the start of the executable segment to the probe */
	__u64 text_after;   /* from the probe to the segment's end */
	__u64 entry_before; /* from the function's entry to the probe */
};

/* Sums of one image, or of one of its threads. */
struct counters {
	__u64 alloc_bytes;
	__u64 alloc_count;
	__u64 free_bytes; /* of recorded blocks */
	__u64 free_count;
	__u64 failed_allocs;
	__u64 unknown_frees;
	__u64 lost_calls; /* entered, never returned */
};

enum heap_flags {
	HEAP_ENDED = 1,	      /* no task uses it any more; waits for user space to take it */
	HEAP_LEADER_GONE = 2, /* comm is final: the group leader has left */
	HEAP_OWNER_GONE = 4,  /* the process has left it; what shares the heap may still be there */
	HEAP_EXEC = 8,	      /* its owner left it by an exec */
	HEAP_EXE_RELATIVE =
	    16, /* exe is followed by the names of the directories it is relative to */
	/* Why not all it did may have been counted: */
	HEAP_LATE = 32,	       /* it went on before a file of its was examined */
	HEAP_UNEXAMINED = 64,  /* a file of its could not be examined */
	HEAP_NO_SYMBOLS = 128, /* its program has no symbols at all */
	HEAP_32BIT = 256,      /* its program is a 32-bit one */
	HEAP_UNHELD = 512,     /* it went on, and its dynamic loader has not held it since */
	HEAP_ATTACHED = 1024,  /* its process was there before it was followed */
	/* Its process is a user and an owner itself, for the threads that have not joined it yet.
	 */
	HEAP_PROCESS = 2048,
	HEAP_OUTSIDE = 4096, /* its process is in none of the control groups that were named */
	/* Several tasks have used it, and this kernel does not let them share their live bytes. */
	HEAP_PEAKLESS = 8192,
	HEAP_SURVEYED = 16384, /* the files of what it executed were looked at */
};

/* A file as the kernel tells it from others. */
struct file_id {
	__u64 inode;
	__u64 device; /* as the kernel encodes it: major << 20 | minor */
};

/* It is the same file, but is it still what was looked at? */
struct file_version {
	__s64 changed_sec; /* ctime */
	__u32 changed_nsec;
	__u32 pad;
};

enum file_flags {
	FILE_NO_SYMBOLS = 1, /* a static program without any */
	FILE_32BIT = 2,
	FILE_UNEXAMINED = 4, /* could not be opened or read, or its probes not be placed */
	FILE_FORGET = 8,     /* true for who asked; the next one is to ask again */
};

/* What is known of a file that can be executed. */
struct file_state {
	struct file_version version;
	__u32 index; /* among the files with probes; NO_INDEX: has none */
	__u32 flags; /* enum file_flags */
	__u32 asked; /* user space has been shown it, and has not answered */
	__u32 pad;
};

/* A file that nobody has looked at, mapped by a process that waits for it to be looked at. */
struct arrival {
	struct file_id file;
	struct file_version version;
	__u64 heap;
	__u64 start, end; /* where it is mapped */
	__u32 pid;	  /* in the pid namespace that /proc shows; 0: none there */
	__u32 pad;
};

/* Bytes live now, and the most there ever were. */
struct live {
	__u64 bytes;
	__u64 peak;
};

/* Where a heap that several tasks use keeps its live bytes: a cache line of its own. */
struct live_cell {
	__u64 heap; /* id of the heap; 0: free */
	struct live live;
	__u64 lonely; /* one task may be all that is left */
	__u64 pad[4];
};

/*
 * One process image and its heap: an address space. This is also the record that user space gets
 * when the image ends; `exe` is last, so that only the part in use travels.
 */
struct heap {
	__u64 id;
	__u64 start_ns;
	__u64 end_ns;
	struct counters sum; /* of the threads that have left */
	__u64 lost_blocks;   /* allocated while the table of live blocks was full */
	__u64 lost_bytes;
	__u64 lost_freed; /* of lost_blocks, how many were freed since */
	struct live live; /* see struct thread */
	__u32 users;	  /* tasks that use it */
	__u32 owners;	  /* those of them that are threads of its process */
	__u32 flags;	  /* enum heap_flags */
	__u32 pid;	  /* in memleak's pid namespace; 0: none there */
	__u32 ppid;
	__u32 uid;
	__u32 image;
	__u32 status;  /* as wait(2) reports it */
	__u32 exe_len; /* bytes used in exe; 0: unknown */
	char comm[COMM_LEN];
	__u32 file_count;	 /* of `files`; may exceed what fits */
	__u16 files[HEAP_FILES]; /* probed files that it has mapped; one may be there twice */
	char exe[EXE_LEN + NAME_LEN];
};

/* A living thread's share of its heap's counters (struct heap holds those of the ones that left).
 */
struct thread_sum {
	__u64 heap;
	struct counters sum;
	struct live live;
	__u32 sole;
	__u32 leader; /* it leads its process, so comm and uid are the process's */
	__u32 uid;
	char comm[COMM_LEN];
	__u32 joined;  /* it is one of the heap's users */
	__u32 outside; /* as HEAP_OUTSIDE */
	__u32 pad;
};

/* A control group (version 2), and how deep below the root it lies. */
struct cgroup_place {
	__u64 id;
	__u32 level;
	__u32 pad;
};

/*
 * Says of a command name whether it is wanted: the state that follows a state and a byte. The end
 * of the name, a NUL, leads to 1 if it is, else to 0. It begins in state 0.
 */
struct name_automaton {
	__u8 next[NAME_STATES][256];
};

/* Probed files that a process which is there has mapped. */
struct found_files {
	__u32 count;
	__u16 files[HEAP_FILES];
};

/* Names everything above that no map holds, so that it gets into the BTF and from there to Rust. */
struct vocabulary {
	enum limits limits;
	enum scope scope;
	enum kind kind;
	enum cookie_bits cookie_bits;
	enum heap_flags heap_flags;
	enum file_flags file_flags;
	enum placeholder placeholder;
	struct thread_sum thread_sum;
	struct arrival arrival;
};

#endif
