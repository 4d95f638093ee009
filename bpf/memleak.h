/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The types and numbers that kernel and user space share. They are declared once: Rust gets them
 * from the BTF of the compiled object. All sizes are in bytes. All times are in nanoseconds of
 * CLOCK_MONOTONIC.
 */
#ifndef MEMLEAK_H
#define MEMLEAK_H

#include "core.h"

#include "../inside/layout.h"

enum limits {
	COMM_LEN = 16,
	/* Longest path of an executable that is kept. A longer path is unknown. */
	EXE_LEN = 1024,
	/* Longest part of a command line that is kept, in bytes: a power of two, less one. */
	ARGS_LEN = 1023,
	/* Variables of environments that are recorded at most. */
	MAX_LABELS = 4,
	/* Words of 64 bits in the longest name of such a variable, with its `=`. */
	LABEL_WORDS = 8,
	/* Longest part of its value that is kept, in bytes. */
	LABEL_LEN = 511,
	/* The most of an environment that is looked at at once, in words of 64 bits. */
	PIECE_WORDS = 32,
	/* One path component (NAME_MAX) and its NUL: the slack that the last append may need. */
	NAME_LEN = 256,
	/* Files with probes. A cookie has room for so many. */
	MAX_FILES = 4096,
	/* Functions with probes, in all files together. */
	MAX_SITES = 32768,
	/* Files with probes that the row of one heap can name. */
	HEAP_FILES = 16,
	/* The index that stands for "no file". */
	NO_INDEX = 0xffffffff,
	/* How long a process may be held until the files that it has mapped are examined. */
	HOLD_SECONDS = 2,
	/* The same, however many answers come meanwhile that do not help it. */
	LONGEST_HOLD_SECONDS = 10,
	/*
	 * Allocator calls that can be open at one time in one thread: a call, another one in a
	 * signal handler, and so on.
	 */
	MAX_OPEN = 8,
	/*
	 * Frees that one thread can have entered at one time: the same, where one allocator wraps
	 * another.
	 */
	MAX_FREES = 4,
	/*
	 * A power of two. Heaps that have several tasks and a cell for their live bytes: a task
	 * finds the cell without looking up the heap.
	 */
	LIVE_CELLS = 4096,
	/* Control groups that -a can be limited to. */
	MAX_CGROUPS = 8,
	/* States of the automaton that matches the command names that -a is limited to. */
	NAME_STATES = 128,
	/* Frames of a stack that are recorded, from the innermost. */
	MAX_FRAMES = 512,
	/* Files with code that can be told apart: one less, because 0 is none. */
	MAX_MODULES = 16384,
	/* Distinct rules of unwinding. All files of a desktop have some ten thousand. */
	MAX_RULES = 65536,
	/* A power of two. Rows of rules in one of the maps in `rows`: 4 MB. */
	SEGMENT_ROWS = 524288,
	/* The most of these maps: 33 million rows. */
	ROW_SEGMENTS = 64,
	/* The page size that offsets of code are looked up by, as a power of two. */
	CODE_PAGE_BITS = 12,
};

/* Which processes are followed. */
enum scope {
	SCOPE_TREE,   /* a command, from its exec on, and all processes that it starts */
	SCOPE_CHOSEN, /* running processes, named by their ids, and all processes that they start */
	SCOPE_ALL, /* every process of the machine except memleak, or those that pass the filters */
};

/* What can happen to a task. */
enum task_event {
	TASK_FORKED,
	TASK_EXECUTED,
	TASK_EXITED,
	TASK_ARRIVED, /* it has executed a file, and may have mapped files that are not known */
	TASK_EVENTS,
};

/* What a probed function does. */
enum kind {
	KIND_ALLOC = 1,	  /* returns (or stores) a new block */
	KIND_REALLOC = 2, /* replaces a block */
	KIND_FREE = 3,
	KIND_START = 4, /* allocates nothing; its call shows that the image uses the file */
	/*
	 * As KIND_ALLOC and KIND_REALLOC, but the function may throw, so it has no return probe
	 * (see cookie.bpf.h).
	 */
	KIND_NEW = 5,
	KIND_RENEW = 6,
	KIND_RESIZE = 7,   /* changes a block's size in place, and returns its size */
	KIND_REALLOCF = 8, /* as KIND_REALLOC, but frees the old block if it fails */
	/* A free that may call other allocators. Until it returns, these calls are part of it. */
	KIND_FREE_SCOPE = 9,
	KIND_FREE_SCOPE_THROWS = 10,
	/* Places in the code of functions that may throw: */
	KIND_RETURN = 11, /* its `ret` */
	KIND_LEFT = 12,	  /* a jump to code that was not followed */
	/* A function that may throw, and whose places of return are not known. */
	KIND_UNFOLLOWED = 13,
	/*
	 * As KIND_FREE, but the function may begin again at its entry. The free of glibc 2.43 does
	 * so if a thread's first call of it has to create the thread's cache.
	 */
	KIND_FREE_AGAIN = 14,
	/* Allocates nothing. The process tells where it keeps its counters (inside.bpf.h). */
	KIND_INSIDE = 15,
};

/*
 * A probe's cookie: everything that its program must know about the function. Arguments are counted
 * from 1. 0 means that there is no such argument.
 */
enum cookie_bits {
	COOKIE_KIND = 0,   /* 4 bits: enum kind */
	COOKIE_SIZE = 4,   /* 4 bits: the argument with the size */
	COOKIE_COUNT = 8,  /* 4 bits: the argument to multiply the size by */
	COOKIE_BLOCK = 12, /* 4 bits: the argument with the old block */
	COOKIE_OUT = 16,   /* 4 bits: the argument that points to where the block is stored */
	COOKIE_FILE = 20,  /* 12 bits: index of the file */
	COOKIE_SITE = 32,  /* 32 bits: index in the table of sites */
};

/*
 * Stands in a program in place of its probe's cookie, on kernels that do not tell programs their
 * cookie. No real cookie equals it, because its kind does not exist.
 */
enum placeholder {
	PLACEHOLDER_LOW = 0x65616b00,
	PLACEHOLDER_HIGH = 0x6d656d6c,
};

/*
 * Where a probe's file lies around the probe, in bytes. It tells calls from within the file from
 * others.
 */
struct site {
	__u64 text_before; /* from the start of the executable segment to the probe */
	__u64 text_after;  /* from the probe to the end of the segment */
	/* The same within the allocator's functions, which in a C library are a part of it. */
	__u64 own_before;
	__u64 own_after;
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
	__u64 lost_calls; /* entered, but never returned */
	__u64
	    hashed; /* blocks in the hash table; may wrap below 0 in a thread that frees others' */
};

enum heap_flags {
	HEAP_ENDED = 1,	      /* no task uses it any more; it waits for user space to take it */
	HEAP_LEADER_GONE = 2, /* comm is final: the group leader has exited */
	HEAP_OWNER_GONE = 4,  /* the process has left it; other tasks that share it may still run */
	HEAP_EXEC = 8,	      /* its owner left it by an exec */
	HEAP_EXE_RELATIVE = 16, /* exe is followed by the names of the directories above it */
	/* Reasons why the counts may be incomplete: */
	HEAP_LATE = 32, /* its process went on before a file that it had mapped was examined */
	HEAP_UNEXAMINED = 64,  /* a file that it has mapped could not be examined */
	HEAP_NO_SYMBOLS = 128, /* its program has no symbols at all */
	HEAP_32BIT = 256,      /* its program is a 32-bit one */
	HEAP_UNHELD = 512, /* its process went on, and its dynamic loader has not held it since */
	HEAP_ATTACHED = 1024, /* its process was running before it was followed */
	/*
	 * The process itself counts as one user and one owner, for its threads that have not joined
	 * yet.
	 */
	HEAP_PROCESS = 2048,
	HEAP_OUTSIDE = 4096, /* its process is in none of the control groups that were named */
	/* Several tasks have used it, and this kernel does not let them share their live bytes. */
	HEAP_PEAKLESS = 8192,
	HEAP_SURVEYED = 16384,	 /* the files that its exec has mapped were looked up */
	HEAP_LOADING = 32768,	 /* it has run no code but its dynamic loader's */
	HEAP_MAPPING = 65536,	 /* its loader has reported that it is about to map libraries */
	HEAP_UNREACHED = 131072, /* another reason: see `pid_filter` */
	HEAP_FORKED = 262144,	 /* it began with the blocks of its process's parent */
};

/* Whether the memory of an image was read at its end, to judge the blocks that it never freed. */
enum reach_state {
	REACH_UNASKED, /* its end was not met */
	REACH_WAITING, /* its process is held, and user space has not begun to read */
	REACH_READING, /* user space reads */
	REACH_READ,    /* user space has read, or says why not */
	/* Why it was not read: */
	REACH_UNWANTED, /* it has freed enough */
	REACH_SIGNAL,
	REACH_TIMER,
	REACH_TOO_LONG,
	REACH_SHARED,
	REACH_REALTIME,
	REACH_FAILED, /* it could not be held */
};

/* How the kernel identifies a file. */
struct file_id {
	__u64 inode;
	__u64 device; /* as the kernel encodes it: major << 20 | minor */
};

/* Tells whether a file's content is still the one that was examined. */
struct file_version {
	__s64 changed_sec; /* ctime */
	__u32 changed_nsec;
	__u32 pad;
};

enum file_flags {
	FILE_NO_SYMBOLS = 1, /* a static program without any symbols */
	FILE_32BIT = 2,
	FILE_UNEXAMINED = 4, /* could not be opened or read, or its probes could not be placed */
	FILE_FORGET = 8,     /* true for the process that asked; the next one has to ask again */
};

/* What is known of a file that can be executed. */
struct file_state {
	struct file_version version;
	__u32 index;  /* among the files with probes; NO_INDEX: it has none */
	__u32 flags;  /* enum file_flags */
	__u32 asked;  /* user space has been asked about it, and has not answered */
	__u32 module; /* its number in call stacks; 0: none */
};

/* A file that was not examined yet. The process that has mapped it waits until it is. */
struct arrival {
	struct file_id file;
	struct file_version version;
	__u64 heap;
	__u64 start, end; /* where it is mapped */
	__u32 pid;	  /* in the pid namespace that /proc shows; 0: not in it */
	__u32 pad;
};

/* A process that waits in the kernel, and would rather sleep. */
struct sleeper {
	__u32 pid; /* in the initial pid namespace */
};

/* What is known of a live block. */
struct block {
	__u64 size;
	__u32 stack; /* index in `stack_sums` of the stack that allocated it; 0: unknown */
	__u32 born;  /* CLOCK_MONOTONIC in units of 1 << BORN_SHIFT ns; 0: not recorded */
};

enum birth {
	BORN_SHIFT = 27,   /* a unit is 134 ms; 30 bits are more than four years */
	BORN_IN_STATE = 2, /* the bit of `state` in struct slot where it begins */
};

/* A place for one live block. */
struct slot {
	__u32 state; /* enum slot_state, and in the bits above it `born` of struct block */
	__u32 stack; /* as in struct block */
	__u64 heap;
	__u64 address;
	__u64 size;
};

enum slot_state { SLOT_EMPTY, SLOT_BUSY, SLOT_FULL };

/* A process that is held at its end. User space reads its memory. */
struct ending {
	__u64 heap;
	__u32 task;	/* the thread that ends the process, in the initial pid namespace */
	__u32 tid;	/* the same in memleak's own pid namespace; 0: not in it */
	__u32 proc_tid; /* the same in the pid namespace that /proc shows; 0: not in it */
	__u32 pad;
};

/*
 * A frame of a call stack: a place in a file, or an address. The place is where the call returns
 * to. In a function that a signal has interrupted, it is where the function goes on.
 */
enum frame_bits {
	FRAME_OFFSET = 0,   /* 40 bits: offset in the file */
	FRAME_MODULE = 40,  /* 22 bits: number of the file */
	FRAME_EXACT = 62,   /* 1 bit: a signal has interrupted the function there */
	FRAME_ADDRESS = 63, /* 1 bit: the lower 62 are an address, of code in no known file */
};

/* Why a walk up a stack has ended. */
enum walk_end {
	WALK_COMPLETE,	 /* the outermost function was reached */
	WALK_TOO_DEEP,	 /* there are more frames than MAX_FRAMES */
	WALK_NO_RULE,	 /* code without rules, and no frame pointer that leads on */
	WALK_ODD_RULE,	 /* a rule of a kind that is not known here */
	WALK_PENDING,	 /* code of a file whose rules are not loaded yet */
	WALK_UNREADABLE, /* the stack's memory could not be read */
	WALK_NO_CODE,	 /* a return address that leads to no code */
	WALK_NO_CALL,	 /* a return address that the kernel has replaced could not be found */
	WALK_BUSY,	 /* the mappings were being changed, and nothing was known of the code */
};

/* A call stack, as it is sent to user space. */
struct stack_record {
	__u64 hash;
	__u32 depth;   /* frames */
	__u16 end;     /* enum walk_end */
	__u16 guessed; /* frames that were found by frame pointers alone */
	__u64 frames[MAX_FRAMES];
};

/* What a heap has allocated by one stack. */
struct stack_sum {
	__u64 heap;  /* 0: unused */
	__u64 stack; /* its hash */
	__u64 alloc_bytes;
	__u64 alloc_count;
	__u64 free_bytes;
	__u64 free_count;
	__u32 next; /* the next one of the heap; 0: none */
	__u32 told; /* user space has its frames, or will have */
};

/* What a rule of unwinding says. All distances are in words of 8 bytes. */
enum rule_kind {
	RULE_MISSING,
	RULE_OUTERMOST,
	RULE_SIGNAL,  /* the kernel has made the frame */
	RULE_LINKAGE, /* a procedure linkage table */
	RULE_PLAIN,
	RULE_UNKNOWN,
	RULE_PENDING, /* not loaded yet */
};

enum rule_base { BASE_STACK_POINTER, BASE_FRAME_POINTER, BASE_THIRD };

/* A rule in one word. */
enum rule_bits {
	RULE_KIND = 0,	   /* 3 bits: enum rule_kind */
	RULE_BASE = 3,	   /* 2 bits: enum rule_base */
	RULE_INDIRECT = 5, /* 1 bit: the end is the word at the distance, plus RULE_PLUS */
	RULE_AT_FRAME = 6, /* 1 bit: RULE_FRAME is a signed distance from the frame pointer */
	/* Words below the frame's end; 0: in the register. */
	RULE_RETURN = 8, /* 8 bits */
	RULE_FRAME = 16, /* 8 bits */
	RULE_THIRD = 24, /* 8 bits; RULE_LOST: nobody knows */
	RULE_PLUS =
	    32, /* 8 bits; of a linkage table: the byte of an entry at which it has pushed */
	RULE_DISTANCE = 40, /* 24 bits, signed: from the base */
};

enum rule_saved { RULE_IN_REGISTER = 0, RULE_LOST = 255 };

/* The rules of a file: rows of an offset in the file (upper 32 bits) and the number of a rule. */
struct module {
	__u32 first; /* row */
	__u32 count;
	__u32 loaded;
	__u32 pad;
};

/* Asks for the threads of a process that is held at its end. The answer is in the same place. */
struct stop {
	__u64 heap;
	__u32 task;
	__u32 skip;	  /* threads that were told already */
	__u32 told;	  /* threads whose state is in the ring `states` */
	__u32 unsettled;  /* threads that may still run */
	__u32 is_held;	  /* the process is held, and may be read */
	__u32 threads;	  /* how many it has */
	__u64 hashed;	  /* blocks of the heap in the hash table */
	__u32 file_count; /* as in struct heap */
	__u16 files[HEAP_FILES];
	__u32 has_unseen; /* it may have blocks that are in no list */
	__u64 inside_at;  /* as in struct heap; 0, too, if its counters cannot be read */
};

/* Asks which of these addresses are blocks of a heap in the hash table. */
struct look_up {
	__u64 heap;
	__u32 first; /* in `candidates` */
	__u32 count;
	__u32 found;
	__u32 pad;
};

enum { MAX_CANDIDATES = 65536, NOT_A_BLOCK = -1 };

/* An address that may be that of a block. */
struct candidate {
	__u64 address;
	__s64 size;  /* the answer: in bytes, or NOT_A_BLOCK */
	__u32 stack; /* the answer: as in struct block */
	__u32 pad;
};

enum { STATE_REGISTERS = 34 };

/* What a thread of such a process had in its registers when it entered the kernel. */
struct thread_state {
	__u64 heap;
	__u64 tls; /* where its thread control block is */
	__u64 sp;
	__u64 registers[STATE_REGISTERS]; /* unused ones are 0 */
	__u32 at_end;			  /* it is at the entry of `_exit` */
	__u32 pad;
};

/* The bytes that are live now, and their maximum so far. */
struct live {
	__u64 bytes;
	__u64 peak;
};

/* Where a heap that several tasks use keeps its live bytes: a cache line for each heap. */
struct live_cell {
	__u64 heap; /* id of the heap; 0: the cell is free */
	struct live live;
	__u64 lonely; /* only one task may be left */
	__u64 pad[4];
};

/* What a copy of the C library has counted in a process: see inside/layout.h. */
struct inside_sums {
	__u64 alloc_bytes;
	__u64 alloc_count;
	__u64 free_count;
	__u64 unknown_frees;
	__u64 failed_allocs;
	__s64 live;
	__u64 peak;
	__u64 unrecorded; /* allocated, and not remembered */
	__u64 unrecorded_bytes;
	__u64 in_flight; /* calls that have not returned, and may be counted in part */
	__u64 several;	 /* the peak is unknown */
};

enum inside_flags {
	INSIDE_EXECUTING = 1, /* its process has begun an exec, which waits for its other threads */
	INSIDE_TAKEN = 2,     /* `inside` is final */
	INSIDE_UNREAD = 4,    /* `inside` is not what the process has counted */
	INSIDE_NESTED = 8,    /* some calls were counted by a probe, too */
};

/*
 * One process image and its heap: an address space. User space gets the same record when the image
 * ends. `exe` is last, so that only the part in use is sent.
 */
struct heap {
	__u64 id;
	__u64 start_ns;
	__u64 end_ns;
	__u64 cgroup;	     /* that its process was last in, of version 2 */
	struct counters sum; /* of the threads that have left */
	__u64 lost_blocks;   /* allocated while the table of live blocks was full */
	__u64 lost_bytes;
	__u64 lost_freed; /* how many of lost_blocks were freed since */
	struct live live; /* see struct thread */
	__u32 users;	  /* tasks that use it */
	__u32 owners;	  /* those users that are threads of its process */
	__u32 flags;	  /* enum heap_flags */
	__u32 pid;	  /* in memleak's pid namespace; 0: not in it */
	__u32 ppid;
	__u32 uid;
	__u32 image;
	__u32 status;  /* as wait(2) reports it */
	__u32 exe_len; /* bytes used in exe; 0: unknown */
	char comm[COMM_LEN];
	__u32 reach;	     /* enum reach_state */
	__u32 stacks;	     /* the first of its entries in `stack_sums`; 0: none */
	__u64 read_until_ns; /* in REACH_READING: the process is not held any longer */
	__u64 leader_sp;     /* the leader's stack pointer when it exited before the others */
	__u64 inside_at;     /* where its process keeps counters (struct memory); 0: nowhere */
	struct inside_sums inside;
	__u32 inside_flags;	 /* enum inside_flags */
	__u32 file_count;	 /* of `files`; may exceed HEAP_FILES */
	__u16 files[HEAP_FILES]; /* probed files that it has mapped; a file may be there twice */
	char exe[EXE_LEN + NAME_LEN];
};

/*
 * A living thread's share of its heap's counters. struct heap holds those of the threads that have
 * left.
 */
struct thread_sum {
	__u64 heap;
	struct counters sum;
	struct live live;
	__u64 cgroup;
	__u32 sole;
	__u32 leader; /* it leads its process, so comm and uid are the process's */
	__u32 uid;
	char comm[COMM_LEN];
	__u32 joined;  /* it is one of the heap's users */
	__u32 outside; /* as HEAP_OUTSIDE */
	__u32 pad;
};

/* A control group (version 2), and its depth below the root. */
struct cgroup_place {
	__u64 id;
	__u32 level;
	__u32 pad;
};

/*
 * Decides whether a command name is wanted: `next` gives the state that follows a state and a byte.
 * The first state is 0. The end of the name, a NUL, leads to 1 if the name is wanted, else to 0.
 */
struct name_automaton {
	__u8 next[NAME_STATES][256];
};

/* The words that an image was executed with, each with a NUL at its end. */
struct command_line {
	__u32 length; /* of the whole, which may exceed ARGS_LEN; 0: unknown */
	char words[ARGS_LEN + 1];
};

/* The name of a variable that is wanted, with its `=`, and which bits of the words are its own. */
struct label_name {
	__u64 wanted[LABEL_WORDS];
	__u64 mask[LABEL_WORDS];
	__u32 length; /* in bytes; 0: there is none */
	__u32 pad;
};

/* The value of a variable. */
struct label_value {
	char text[LABEL_LEN + 1];
};

/* The variables of an image's environment that were wanted. */
struct labels {
	__u64 piece[PIECE_WORDS];  /* of the environment, while it is searched */
	__u32 lengths[MAX_LABELS]; /* of each value with its NUL; 0: there is no such variable */
	struct label_value values[MAX_LABELS];
};

/* Probed files that a running process has mapped. */
struct found_files {
	__u32 count;
	__u16 files[HEAP_FILES];
};

/*
 * Names every type above that no map holds. So the type gets into the BTF, and from there to Rust.
 */
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
	struct sleeper sleeper;
	enum slot_state slot_state;
	enum birth birth;
	enum reach_state reach_state;
	enum frame_bits frame_bits;
	enum walk_end walk_end;
	enum rule_kind rule_kind;
	enum rule_base rule_base;
	enum rule_bits rule_bits;
	enum rule_saved rule_saved;
	struct stack_record stack_record;
	struct ending ending;
	struct stop stop;
	struct look_up look_up;
	struct thread_state thread_state;
	enum inside_flags inside_flags;
	enum inside_limits inside_limits;
	enum state_flags state_flags;
	struct memory memory;
};

#endif
