/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The maps and global variables that both objects have, with the reason for each size. A map that
 * only some kernels have stands in the header that uses it.
 */
#ifndef MEMLEAK_MAPS_H
#define MEMLEAK_MAPS_H

#include "core.h"
#include "memleak.h"

/*
 * The kernels that the object is for: see newer.bpf.h and older.bpf.h. Before Linux 6.1, a map that
 * a uprobe uses must be preallocated. Otherwise the kernel warns as soon as such a program is
 * loaded, and would allocate in a context that forbids it. A map that does not grow has a size that
 * can be allocated at once.
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
	__u64 old_block; /* realloc: the block that it replaces; 0 if none was found there */
	struct block old_content;
	__u64 out; /* where the block's address will be stored; 0: it is returned */
	__u64 ip;  /* the probe's address */
	__u64 cookie;
	__u64 back;	/* the address that it returns to; only of kinds that may throw */
	__u64 inner_ip; /* of a call within it, to another file; 0: none yet */
	__u64 inner_cookie;
	__u32 old; /* enum old_state */
	__u32 pad;
	__u64 inside_allocs; /* what its thread had counted inside */
};

/* The last free that found its block. Its function may call another free to do the work. */
struct free_call {
	__u64 block;
	__u64 sp; /* the stack pointer at entry */
	__u64 ip; /* the probe's address */
	__u64 cookie;
};

/* A free that has been entered. Its return is not probed, because its time does not matter. */
struct entered_free {
	__u64 sp;
	__u64 ip;
	__u64 cookie;
	__u64 block;
};

/* The old block of a realloc. */
enum old_state { OLD_NONE, OLD_RECORDED, OLD_UNRECORDED };

/*
 * One task of a followed process. Only the task itself writes here. No other probe of the same task
 * interrupts a probe, so nothing needs to be atomic.
 */
struct thread {
	__u64 heap; /* id of the heap it uses; 0: none yet (launched, not yet executed) */
	struct counters sum;
	struct live live; /* the heap's, while this is its only task: see `sole` */
	__u64 files;	  /* files of its heap that it knows; the bit is the index modulo 64 */
	__u32 sole;	  /* this is the heap's only task: `live` is the heap's */
	__u32 borrowed;	  /* the heap belongs to another process (vfork, CLONE_VM) */
	__u32 image;
	__u32 walks;	  /* up its stack, at most few_walks */
	__u64 exec_id;	  /* of the last exec that was handled */
	__u32 exited;	  /* its exit was handled */
	__u32 pid, ppid;  /* of its process, in memleak's pid namespace */
	__u32 depth;	  /* calls in `open` */
	__u32 free_count; /* frees in `frees` */
	__u32 unreached;  /* its process has executed beside the `pid_filter` */
	struct entered_free frees[MAX_FREES];
	char old_comm[COMM_LEN]; /* comm before its last change */
	struct free_call last_free;
	struct open_call open[MAX_OPEN];
};

/*
 * Threads whose task storage could not be created. A tracepoint program may not create one while a
 * probe that was preempted on the same CPU is reading another. This is rare, and slower for these
 * threads, but nothing is lost.
 * On older kernels all threads are here, 1.1 kB each. A thread that finds no room is a lost row.
 * The key is the address of the task, which stays the same until after its exit. Its id would
 * change when a thread other than the leader calls exec.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, GROWS);
	__uint(max_entries, MAX_LATE_THREADS);
	__type(key, __u64);
	__type(value, struct thread);
} late_threads SEC(".maps");

/*
 * Tasks that execute a file without being the leader of their process, if that is followed. The key
 * is the task's address. The value is the number of the image that begins: the record of the
 * process goes with its leader. There are a few at one time, at the most.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} successors SEC(".maps");

/*
 * Living images, and ended ones that found the ring full, 1.5 kB each. Where the map grows, memory
 * is taken as it is used, and 16 B × max_entries at the start. If more processes run at one time,
 * rows are lost, and the loss is counted.
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
 * The live blocks. A free has to subtract the size. User space sets max_entries
 * (--max-allocs). On newer kernels a block goes to `slots` first.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, GROWS);
	__uint(max_entries, 1);
	__type(key, struct block_key);
	__type(value, struct block);
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

/* The users whose processes are followed, if not all are. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u8);
} wanted_uids SEC(".maps");

/* The command names that are followed, if not all are. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct name_automaton);
} wanted_names SEC(".maps");

/*
 * The probed files that user space has found in running processes. The key is the pid in memleak's
 * own namespace. An entry is needed until the process has its heap. Before 6.7 a program cannot
 * read the mappings itself.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, GROWS);
	__uint(max_entries, MAX_HEAPS);
	__type(key, __u32);
	__type(value, struct found_files);
} found SEC(".maps");

struct signal_key {
	__u32 signal;
	__u32 sender; /* as memleak sees it; 0: outside its pid namespace */
};

/* When the sender last sent the signal to memleak, and when to the command. */
struct signal_seen {
	__u64 to_memleak_ns;
	__u64 to_command_ns;
	__u64 of_tree; /* the sender was a followed process */
};

/*
 * More senders than ever send a signal within the few milliseconds for which an entry matters. LRU,
 * so that no entry needs to be deleted. Preallocated, because signals are sent with locks held.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct signal_key);
	__type(value, struct signal_seen);
} signals_seen SEC(".maps");

/* Set by user space before loading. */
const volatile __u64 max_blocks = 1;  /* max_entries of `blocks` */
const volatile __u32 slot_mask = 0;   /* max_entries of `slots`, a power of two, minus one */
const volatile bool dated = false;    /* blocks have `born` */
const volatile bool all_late = false; /* every new thread goes to `late_threads` */
const volatile __u32 misses = 0; /* tests: how many of the two programs ignore half of the events */

const volatile __u32 scope = SCOPE_TREE; /* enum scope */
const volatile bool no_children = false;
/*
 * The kernel calls the programs at probes in the named processes only (since 6.12). It knows such a
 * process by the task that led it when the probes were attached. So it does not reach:
 * - another process in the same memory (vfork, CLONE_VM);
 * - threads that outlive that task, in what they map, or where another program's uprobes end;
 * - what a second thread executes, which takes the place of that task.
 * The heap then has HEAP_UNREACHED.
 */
const volatile bool pid_filter = false;
const volatile bool by_uid = false, by_name = false;
const volatile __u32 cgroup_count = 0;
const volatile struct cgroup_place wanted_cgroups[MAX_CGROUPS] = {};

/* Which processes are read at their ends. Sizes are of what a process has not freed. */
const volatile bool read_all = false;	      /* each that has a block */
const volatile __u64 read_over = ~0ULL;	      /* each that has more bytes */
const volatile __u64 read_total_over = ~0ULL; /* those that go unread must not have more in all */
const volatile __u64 read_within_ns = 0;      /* how long a process may be held while it is read */
const volatile bool reads_ahead = false;      /* buckets of `blocks` may be read before a look-up */

const volatile bool inside = false; /* copies of the C library count, too */

const volatile bool stacks = false; /* allocations are attributed to call stacks */
/*
 * A thread's first walks are neither remembered nor looked up, because most programs are small ones
 * and make few walks twice.
 */
const volatile __u32 few_walks = 0;
const volatile __u32 stack_mask = 0; /* max_entries of `stack_sums`, a power of two, minus one */
const volatile __u32 walk_mask = 0;  /* max_entries of `stack_walks`, a power of two, minus one */
const volatile __u64 stack_seed = 0; /* a random number */

struct vocabulary *vocabulary = 0; /* never set */

/* Set by user space before the command is released. Both are as memleak sees them. */
__u32 memleak_pid = 0;
__u32 command_pid = 0;

/* memleak's own pid namespace, found by `identify`. */
struct pid_namespace *own_ns = 0;
__u32 own_level = 0;
__u32 proc_level = 0; /* level of the namespace that /proc shows; may be above memleak's */

__u32 memleak_tgid = 0; /* memleak's tgid in the initial pid namespace, found by `identify` */
/*
 * The tgids of its parent, of that one's parent, and so on, found by `identify`. If one ends, one
 * of the others takes its place.
 */
enum { MOST_ANCESTORS = 32 };
__u32 memleak_ancestors[MOST_ANCESTORS] = {};
__u32 nobody_answers = 0;	/* memleak has exited, or is about to */
struct arrival identified = {}; /* what `identify_file` found */
__u64 answers = 0;		/* raised by user space after it has put an answer into `files` */
__u32 attaching = 0;		/* user space attaches probes, which may take seconds */
__u64 waited_in_vain = ~0ULL;	/* value of `answers` when a wait for them took too long */
__u32 keeper = 0;	 /* the keeper's tgid in the initial pid namespace, once it was asked */
__u64 sleeping = 0;	 /* processes that the keeper lets sleep */
__u64 last_sleep_ns = 0; /* when a process last read the keeper's memory */
__u64 holds = 0;	 /* how often a process was held */
__u64 longest_hold_ns = 0;

__u32 joining = 0; /* running processes may be joined: all their probes are in place */

__u64 last_heap = 0;		/* the newest heap's id; ids begin at 1 and are never reused */
__u64 rows_lost = 0;		/* images that could not be followed */
__u64 rows_waiting = 0;		/* heaps with HEAP_ENDED that did not fit into the ring, in total */
__u64 late_count = 0;		/* entries that were ever put into `late_threads` */
__u64 successor_count = 0;	/* the same for `successors` */
__u64 dead_blocks = 0;		/* entries of `blocks` whose heap has ended */
__u64 retold[TASK_EVENTS] = {}; /* the first program was not called, the second was */
__u64 ignored[TASK_EVENTS][2] = {}; /* by the first program, and by the second (see `misses`) */
__u64 unread_bytes = 0;		    /* what processes had not freed that went unread */
__u64 living_tasks = 0;		    /* followed tasks that have not exited */

static __always_inline struct heap *heap_by_id(__u64 id)
{
	return bpf_map_lookup_elem(&heaps, &id);
}

#endif
