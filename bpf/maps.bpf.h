/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The maps and global variables, with the reason for each size. */
#ifndef MEMLEAK_MAPS_H
#define MEMLEAK_MAPS_H

#include "core.h"
#include "memleak.h"

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
	__u32 pid, ppid;  /* of its process, in memleak's pid namespace */
	__u32 depth;	  /* calls in `open` */
	__u32 free_count; /* frees in `frees` */
	struct entered_free frees[MAX_FREES];
	char old_comm[COMM_LEN]; /* comm before the last change of it */
	struct free_call freed;
	struct open_call open[MAX_OPEN];
};

/* Lives and dies with the task: no key, so no pid that could be reused or belong to a namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

/*
 * Threads whose storage could not be made: a tracepoint program may not make one while a probe that
 * was preempted on the same CPU is reading another. Rare, and slower for them, but nothing is lost.
 * By the address of the task, which is its own until after its exit; its id changes when a thread
 * other than the leader executes something.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct thread);
} late_threads SEC(".maps");

/* A process that was there before it was followed. Its threads join its heap one by one. */
struct process {
	__u64 heap; /* id of its heap; 0: none yet */
	__u32 chosen;
	__u32 pad;
};

/* Kept by the leader of the process. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct process);
} processes SEC(".maps");

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
 * Living images, and ended ones that found the ring full. Takes memory as it is used (1.4 kB each)
 * and 16 B × max_entries at the start; more processes than this at one time lose rows, which is
 * counted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, __u64);
	__type(value, struct heap);
} heaps SEC(".maps");

/*
 * Live bytes of heaps that several tasks use, by the heap's id: found faster than the heap. A heap
 * that finds its place taken keeps them in itself.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LIVE_CELLS);
	__type(key, __u32);
	__type(value, struct live_cell);
} live_cells SEC(".maps");

struct block_key {
	__u64 heap;
	__u64 address;
};

/*
 * The live blocks: which sizes to subtract when they are freed, nothing more. Most are short-lived,
 * and a hash table's insertion, look-up and deletion cost more than all the rest of our work, so a
 * block goes first to a slot that its address selects, and to the hash table only where that is
 * taken. It is in one of them, never in both, and never moves. User space sets max_entries of both
 * (--max-allocs).
 */
enum slot_state { SLOT_EMPTY, SLOT_BUSY, SLOT_FULL };

struct slot {
	__u64 state; /* enum slot_state */
	__u64 heap;
	__u64 address;
	__u64 size;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
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

/* Executable files that have been looked at, or are being. 40,000 distinct ones fit, and cost
 * memory as they come; what does not fit is shown to user space again and again. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 40000);
	__type(key, struct file_id);
	__type(value, struct file_state);
} files SEC(".maps");

/* Files on their way to user space: a process that starts brings some fifty, at the most. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} arrivals SEC(".maps");

/* Processes that are to wait before they are back from their exec, by their task's address. */
struct errand {
	struct bpf_task_work work;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct errand);
} errands SEC(".maps");

/* Where a heap is put together: too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct heap);
} scratch SEC(".maps");

/* Set by user space before loading. */
const volatile __u64 max_blocks = 1;  /* max_entries of `blocks` */
const volatile __u32 slot_mask = 0;   /* max_entries of `slots`, a power of two, less one */
const volatile bool all_late = false; /* every thread that is started goes to `late_threads` */

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

__u32 keeper = 0;	  /* memleak itself, in the initial pid namespace; found by `identify` */
__u32 nobody_answers = 0; /* memleak has gone, or is about to */
struct arrival identified = {}; /* what `identify_file` found */
__u64 answers = 0;		/* raised by user space when it has put something into `files` */
__u64 waited_in_vain = ~0ULL;	/* what `answers` was when a wait for them took too long */
__u64 holds = 0;		/* times that a process waited for answers */
__u64 longest_hold_ns = 0;

__u32 joining = 0; /* processes that are there may be joined: all their probes are in place */

__u64 last_heap = 0;	   /* the newest heap's id; ids begin at 1 and are never used again */
__u64 rows_lost = 0;	   /* images that could not be followed */
__u64 rows_waiting = 0;	   /* heaps with HEAP_ENDED that did not fit into the ring, ever */
__u64 late_count = 0;	   /* entries that `late_threads` ever had */
__u64 successor_count = 0; /* the same of `successors` */
__u64 dead_blocks = 0;	   /* entries of `blocks` whose heap has ended */
__u64 living_tasks = 0;	   /* followed tasks that have not exited */

#endif
