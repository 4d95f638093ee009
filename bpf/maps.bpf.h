/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The maps and global variables, with the reason for each size. */
#ifndef MEMLEAK_MAPS_H
#define MEMLEAK_MAPS_H

#include "core.h"
#include "memleak.h"

/*
 * Which kernels the object is for: see newer.bpf.h and older.bpf.h. Before Linux 6.1 a map that a
 * uprobe uses must be preallocated: the kernel warns as soon as such a program is loaded, and would
 * allocate where it must not. What does not grow has a size that is to be had at once.
 */
#ifdef OLDER_KERNELS
enum { GROWS = 0, MAX_HEAPS = 16384, MAX_LATE_THREADS = 16384 };
#else
enum { GROWS = BPF_F_NO_PREALLOC, MAX_HEAPS = 131072, MAX_LATE_THREADS = 4096 };
#endif

/* An allocator call that has been entered and has not returned. */
struct open_call {
	__u64 sp; /* the stack pointer at entry */
	__u64 size;
	__u64 old_block; /* realloc: what it replaces, 0 if nothing was found there */
	__u64 old_size;
	__u64 out; /* where the block's address will be stored; 0: it is returned */
	__u64 ip;  /* the probe's address */
	__u64 cookie;
	__u64 back;	/* the address it returns to; only of kinds that may throw */
	__u64 inner_ip; /* of a call within it, to another file; 0: none yet */
	__u64 inner_cookie;
	__u32 old; /* enum old_state */
	__u32 pad;
};

/* The last free that found its block: its function may call another one to do the work. */
struct free_call {
	__u64 block;
	__u64 sp; /* the stack pointer at entry */
	__u64 ip; /* the probe's address */
	__u64 cookie;
};

/* A free that has been entered, and has not been seen to return: nobody needs to know when. */
struct entered_free {
	__u64 sp;
	__u64 ip;
	__u64 cookie;
	__u64 block;
};

/* The old block of a realloc. */
enum old_state { OLD_NONE, OLD_RECORDED, OLD_UNRECORDED };

/*
 * One task of a followed process. Only the task itself writes here, and a probe is never
 * interrupted by another one of the same task, so nothing needs to be atomic.
 */
struct thread {
	__u64 heap; /* id of the heap it uses; 0: none yet (launched, not yet executed) */
	struct counters sum;
	struct live live; /* the heap's, while this is its only task: see `sole` */
	__u64 files;	  /* of what is in its heap's `files`, a bit for each 64th */
	__u32 sole;	  /* this is the heap's only task: `live` is the heap's */
	__u32 borrowed;	  /* the heap is that of another process (vfork, CLONE_VM) */
	__u32 image;
	__u64 exec_id;	  /* of the last exec that was told */
	__u32 exited;	  /* its end was told */
	__u32 pid, ppid;  /* of its process, in memleak's pid namespace */
	__u32 depth;	  /* calls in `open` */
	__u32 free_count; /* frees in `frees` */
	__u32 pad;
	struct entered_free frees[MAX_FREES];
	char old_comm[COMM_LEN]; /* comm before the last change of it */
	struct free_call last_free;
	struct open_call open[MAX_OPEN];
};

/*
 * Threads whose storage could not be made: a tracepoint program may not make one while a probe that
 * was preempted on the same CPU is reading another. Rare, and slower for them, but nothing is lost.
 * On older kernels all threads are here, 1.1 kB each; one that finds no room is a row lost. By the
 * address of the task, which is its own until after its exit; its id changes when a thread other
 * than the leader executes something.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, GROWS);
	__uint(max_entries, MAX_LATE_THREADS);
	__type(key, __u64);
	__type(value, struct thread);
} late_threads SEC(".maps");

/*
 * Tasks, by their addresses, that execute something though they do not lead their process, which is
 * followed, and the number of the image that they begin: the leader takes with it what was known.
 * A few at one time, at the most.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} successors SEC(".maps");

/*
 * Living images, and ended ones that found the ring full, 1.5 kB each: where it grows as it is
 * used, and 16 B × max_entries at the start. More processes than this at one time lose rows, which
 * is counted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, GROWS);
	__uint(max_entries, MAX_HEAPS);
	__type(key, __u64);
	__type(value, struct heap);
} heaps SEC(".maps");

struct block_key {
	__u64 heap;
	__u64 address;
};

/*
 * The live blocks: which sizes to subtract when they are freed, nothing more. User space sets
 * max_entries (--max-allocs). On newer kernels `slots` come before it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, GROWS);
	__uint(max_entries, 1);
	__type(key, struct block_key);
	__type(value, __u64);
} blocks SEC(".maps");

/* Ended images on their way to user space: about 1,500 of the usual length. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} ended SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SITES);
	__type(key, __u32);
	__type(value, struct site);
} sites SEC(".maps");

/* The users whose processes are followed, if not everyone's are. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u8);
} wanted_uids SEC(".maps");

/* Which command names are followed, if not all are. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct name_automaton);
} wanted_names SEC(".maps");

/*
 * What user space has found of the processes that are there, by their pids in memleak's own
 * namespace, until they have their heaps. Kernels before 6.7 do not let a program look.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, GROWS);
	__uint(max_entries, MAX_HEAPS);
	__type(key, __u32);
	__type(value, struct found_files);
} found SEC(".maps");

/* Set by user space before loading. */
const volatile __u64 max_blocks = 1;  /* max_entries of `blocks` */
const volatile __u32 slot_mask = 0;   /* max_entries of `slots`, a power of two, less one */
const volatile bool all_late = false; /* every thread that is started goes to `late_threads` */
const volatile __u32 misses = 0;      /* tests: how often half of what is told is ignored */

const volatile __u32 scope = SCOPE_TREE; /* enum scope */
const volatile bool no_children = false;
const volatile bool by_uid = false, by_name = false;
const volatile __u32 cgroup_count = 0;
const volatile struct cgroup_place wanted_cgroups[MAX_CGROUPS] = {};

struct vocabulary *vocabulary = 0; /* never set */

/* memleak's own pid namespace, found by `identify`. */
struct pid_namespace *own_ns = 0;
__u32 own_level = 0;
__u32 proc_level = 0; /* the level of the one that /proc shows; may be above memleak's */

__u32 memleak_tgid = 0;	  /* memleak itself, in the initial pid namespace; found by `identify` */
__u32 nobody_answers = 0; /* memleak has gone, or is about to */
struct arrival identified = {}; /* what `identify_file` found */
__u64 answers = 0;		/* raised by user space when it has put something into `files` */
__u64 waited_in_vain = ~0ULL;	/* what `answers` was when a wait for them took too long */
__u64 holds = 0;		/* times that a process waited for answers */
__u64 longest_hold_ns = 0;

__u32 joining = 0; /* processes that are there may be joined: all their probes are in place */

__u64 last_heap = 0;		/* the newest heap's id; ids begin at 1 and are never used again */
__u64 rows_lost = 0;		/* images that could not be followed */
__u64 rows_waiting = 0;		/* heaps with HEAP_ENDED that did not fit into the ring, ever */
__u64 late_count = 0;		/* entries that `late_threads` ever had */
__u64 successor_count = 0;	/* the same of `successors` */
__u64 dead_blocks = 0;		/* entries of `blocks` whose heap has ended */
__u64 retold[TASK_EVENTS] = {}; /* told by the second program, as the first was not called */
__u64 ignored[TASK_EVENTS][2] = {}; /* by the first program, and by the second (see `misses`) */
__u64 living_tasks = 0;		    /* followed tasks that have not exited */

static __always_inline struct heap *heap_by_id(__u64 id)
{
	return bpf_map_lookup_elem(&heaps, &id);
}

#endif
