// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts the calls of the allocator from within the process. This code is put into a private copy
 * of the C library, whose symbols of the allocator lead here (src/inside). It calls the library's
 * own functions.
 *
 * What it must not do:
 * - take a lock: a fork or a signal could leave it held;
 * - use thread-local storage, or change errno;
 * - be interrupted by a signal handler, or a fork, between two steps that belong together. Each
 *   counter changes by one instruction;
 * - make a system call, except five madvise(2) at a program's first call, and those of `new_leaf`:
 * an mmap(2) and some madvise(2) for each 32 MB of heap beyond the first.
 *
 * A block is forgotten before it is freed, because another thread may get its address at once.
 */
typedef unsigned long long __u64;
typedef long long __s64;
typedef unsigned int __u32;
typedef unsigned char __u8;

#include "layout.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define HIDDEN __attribute__((visibility("hidden")))
#define RARE static __attribute__((noinline, cold))
#define OFTEN static inline __attribute__((always_inline))
/* What the library's symbols lead to. */
#define ENTRY __attribute__((used, aligned(32), visibility("hidden")))

typedef __SIZE_TYPE__ size_t;

/* The library's own functions. */
extern HIDDEN void *libc_malloc(size_t size);
extern HIDDEN void *libc_calloc(size_t count, size_t size);
extern HIDDEN void *libc_realloc(void *block, size_t size);
extern HIDDEN void *libc_reallocarray(void *block, size_t count, size_t size);
extern HIDDEN void *libc_memalign(size_t align, size_t size);
extern HIDDEN void *libc_aligned_alloc(size_t align, size_t size);
extern HIDDEN void *libc_valloc(size_t size);
extern HIDDEN void *libc_pvalloc(size_t size);
extern HIDDEN int libc_posix_memalign(void **out, size_t align, size_t size);
extern HIDDEN void libc_free(void *block);
extern HIDDEN size_t libc_malloc_usable_size(void *block);
/* The library's own code, up to its end. */
extern HIDDEN char libc_code[];
extern HIDDEN char libc_code_end[];
/* __libc_single_threaded */
extern HIDDEN char libc_single_threaded;

HIDDEN struct memory inside_memory;

#define S inside_memory.state
#define W inside_memory.wiped

OFTEN void add(void *counter, __s64 n)
{
	asm volatile("addq %1, %0" : "+m"(*(__u64 *)counter) : "er"(n) : "cc");
}

OFTEN void add_locked(void *counter, __s64 n)
{
	asm volatile("lock addq %1, %0" : "+m"(*(__u64 *)counter) : "er"(n) : "cc");
}

OFTEN __u64 now(const void *counter)
{
	return *(const volatile __u64 *)counter;
}

/*
 * A word of the thread control block that glibc does not use (unused_vgetcpu_cache). The editor
 * refuses a library or loader whose code does. It holds the address of the thread's line.
 */
OFTEN __u64 own_word(void)
{
	__u64 word;

	asm volatile("movq %%fs:0x38, %0" : "=r"(word));
	return word;
}

OFTEN void set_own_word(__u64 word)
{
	asm volatile("movq %0, %%fs:0x38" ::"r"(word));
}

enum { SYS_MMAP = 9, SYS_MUNMAP = 11, SYS_MADVISE = 28 };
enum { NO_HUGE_PAGES = 15, NOT_IN_CORES = 16, WIPE_ON_FORK = 18 }; /* MADV_… */
enum { READ_WRITE = 3, PRIVATE_ANONYMOUS_NORESERVE = 0x4022 };

/* Does not touch errno. */
static long system_call(long number, long a, long b, long c, long d)
{
	long result;
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = -1;
	register long r9 asm("r9") = 0;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}

static void set_flag(__u32 flag)
{
	__atomic_fetch_or(&S.flags, flag, __ATOMIC_RELAXED);
}

static void keep_out_of_cores(void *start, __u64 size)
{
	system_call(SYS_MADVISE, (long)start, size, NOT_IN_CORES, 0);
}

/* What is kept here is of no use to a child, nor in a core dump. */
static void advise(void *start, __u64 size)
{
	if (system_call(SYS_MADVISE, (long)start, size, WIPE_ON_FORK, 0))
		set_flag(LINES_NOT_WIPED);
	keep_out_of_cores(start, size);
	system_call(SYS_MADVISE, (long)start, size, NO_HUGE_PAGES, 0);
}

/*
 * A probe here tells the kernel side where the process keeps its counters. A single `nop`, because
 * newer kernels turn one of five bytes into a call, which costs a process more than one trap.
 */
__attribute__((noinline, used)) HIDDEN void inside_announce(struct state *state, __u64 flags)
{
	asm volatile(".globl inside_announced\n"
		     ".hidden inside_announced\n"
		     "inside_announced: nop" ::"D"(state),
		     "S"(flags)
		     : "memory");
}

/*
 * If there is a probe in a segment of a file, the kernel puts the whole segment into core dumps.
 * Debuggers read it from the file.
 */
static void keep_code_out_of_cores(void)
{
	__u64 start = (__u64)libc_code >> PAGE_BITS << PAGE_BITS;

	keep_out_of_cores((void *)start, (__u64)libc_code_end - start);
}

/* Once in a program, before its forks. */
RARE void prepare(void)
{
	__u64 none = 0, pool = (__u64)inside_memory.pool | POOL;

	if (__atomic_exchange_n(&S.started, 1, __ATOMIC_ACQ_REL))
		return;
	S.magic = INSIDE_MAGIC;
	advise(&W, sizeof(W) + sizeof(inside_memory.pool));
	keep_out_of_cores(inside_memory.leaves, sizeof(inside_memory.leaves));
	keep_code_out_of_cores();
	__atomic_compare_exchange_n(&S.pool, &none, pool, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

static void touch(struct line *first, struct line *end)
{
	for (; first < end; first += LINES_IN_PAGE)
		add_locked(&first->ready, 0);
	add_locked(&end[-1].ready, 0);
}

/*
 * The process's first call, or the first one since its fork. It touches all pages that the kernel
 * side will read. So if one of them cannot be read then, it was taken away, and was not zero.
 */
RARE void start(void)
{
	if (!S.started)
		prepare();
	if (__atomic_exchange_n(&W.head.told, 1, __ATOMIC_ACQ_REL))
		return;
	if (S.threads)
		touch(W.lines, &W.lines[S.threads < OWN_LINES ? S.threads : OWN_LINES]);
	if (S.flags & LINES_SHARED)
		touch(&W.lines[OWN_LINES], &W.lines[LINES]);
	inside_announce(&S, S.flags);
}

/* ---- threads ---------------------------------------------------------------------------- */

OFTEN int is_own(const struct line *line)
{
	return (__u64)line - (__u64)W.lines < OWN_LINES * sizeof(struct line);
}

/* The line of a thread that has not used it yet, or shares it. */
RARE struct line *new_line(void)
{
	__u64 word = own_word();
	struct line *line = (struct line *)word;
	__u32 number;

	if (word && word - (__u64)W.lines >= sizeof(W.lines)) {
		/* Another copy of the library has taken the word (dlmopen). */
		line = &W.lines[OWN_LINES];
		set_flag(LINES_SHARED);
	} else if (!word) {
		number = __atomic_fetch_add(&S.threads, 1, __ATOMIC_RELAXED);
		if (number >= OWN_LINES) {
			number = OWN_LINES + number % SHARED_LINES;
			set_flag(LINES_SHARED);
		}
		line = &W.lines[number];
		set_own_word((__u64)line);
	}
	start();
	line->ready = 1;
	return line;
}

OFTEN struct line *line(void)
{
	struct line *line = (struct line *)own_word();

	return likely(is_own(line) && now(&line->ready)) ? line : new_line();
}

/* Adds to a counter of the thread's line, which it may share. */
OFTEN void count(struct line *line, void *counter, __s64 n)
{
	if (likely(is_own(line)))
		add(counter, n);
	else
		add_locked(counter, n);
}

/*
 * A call begins. It stays open if the thread is killed in the middle of it, or jumps out of it.
 */
OFTEN struct line *enter(void)
{
	struct line *own = line();

	count(own, &own->open, 1);
	return own;
}

/*
 * A call ends. If it has begun before a fork, in the parent, then it is not open here, and only a
 * part of it may have been counted.
 */
OFTEN void leave(struct line *line)
{
	if (likely(now(&line->open)))
		count(line, &line->open, -1);
	else
		add_locked(&W.head.crossed, 1);
}

/* ---- the sizes of blocks ---------------------------------------------------------------- */

/* glibc's header of a chunk: its size, and three flags. */
OFTEN __u64 header(__u64 block)
{
	return *(const __u64 *)(block - 8);
}

OFTEN int is_mapped(__u64 block)
{
	return header(block) & 2;
}

/* What malloc_usable_size says. */
OFTEN __u64 usable(__u64 block)
{
	return (header(block) & ~7ULL) - (is_mapped(block) ? 16 : 8);
}

/* Looks whether the header of a block that was just allocated is as expected. */
RARE void check_header(__u64 block)
{
	if (libc_malloc_usable_size((void *)block) != usable(block))
		set_flag(CHUNKS_ODD);
}

/* No address has more than 47 bits, unless a program asks for it. */
OFTEN __u64 leaf_entry(__u64 leaf, __u64 zone)
{
	return leaf >> PAGE_BITS << ZONE_NUMBER_BITS | zone;
}

OFTEN __u8 *cell_in(__u64 entry, __u64 block)
{
	__u64 leaf = entry >> ZONE_NUMBER_BITS << PAGE_BITS;

	return (__u8 *)leaf + (block >> CELL_BITS & (LEAF_SIZE - 1));
}

/* A leaf that nobody has; 0 if there is no memory. */
RARE __u64 new_leaf(void)
{
	__u64 pool, number, rest, made;

	for (;;) {
		pool = now(&S.pool);
		number = pool & ((1 << PAGE_BITS) - 1);
		if (!number)
			break;
		if (__atomic_compare_exchange_n(&S.pool, &pool, pool + LEAF_SIZE - 1, 0,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return pool - number;
	}
	made = system_call(SYS_MMAP, 0, POOL * LEAF_SIZE, READ_WRITE, PRIVATE_ANONYMOUS_NORESERVE);
	if (made > -4096ULL)
		return 0;
	advise((void *)made, POOL * LEAF_SIZE);
	rest = (made + LEAF_SIZE) | (POOL - 1);
	/* If another thread has made some, too, theirs are enough. */
	if (!__atomic_compare_exchange_n(&S.pool, &pool, rest, 0, __ATOMIC_ACQ_REL,
					 __ATOMIC_RELAXED))
		system_call(SYS_MUNMAP, made + LEAF_SIZE, (POOL - 1) * LEAF_SIZE, 0, 0);
	return made;
}

/* The most entries that are looked at for a zone. */
enum { TRIES = 256 };

RARE __u8 *find_cell(__u64 block, int make)
{
	__u64 zone = block >> ZONE_BITS, entry, leaf = 0, *place;
	int i;

	if (zone >> ZONE_NUMBER_BITS)
		return 0;
	for (i = 0; i < TRIES; i++) {
		place = &inside_memory.leaves[(zone + i) & (LEAVES - 1)];
		entry = now(place);
		if (!entry && make) {
			if (!leaf)
				leaf = new_leaf();
			if (!leaf)
				return 0;
			if (__atomic_compare_exchange_n(place, &entry, leaf_entry(leaf, zone), 0,
							__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
				entry = leaf_entry(leaf, zone);
		}
		if (!entry)
			return 0;
		if ((entry & ((1ULL << ZONE_NUMBER_BITS) - 1)) == zone)
			return cell_in(entry, block);
	}
	return 0;
}

RARE __u8 *make_cell(__u64 block)
{
	check_header(block);
	return find_cell(block, 1);
}

/* The cell of a block; 0 if there is none. */
OFTEN __u8 *cell_of(__u64 block, int make)
{
	__u64 zone = block >> ZONE_BITS;
	__u64 entry = now(&inside_memory.leaves[zone & (LEAVES - 1)]);

	if (likely(entry << (64 - ZONE_NUMBER_BITS) == zone << (64 - ZONE_NUMBER_BITS) && entry))
		return cell_in(entry, block);
	return make ? make_cell(block) : find_cell(block, 0);
}

/*
 * A cell holds the block's slack, plus 1: the bytes that are usable beyond those that were asked
 * for. It also says in which half the block begins, so that blocks can be found by their cells.
 */
OFTEN __u8 half_of(__u64 block)
{
	return block << 3 & SECOND_HALF;
}

RARE int record_long(__u8 *cell, __u64 block, __u64 slack)
{
	__u64 in_leaf = block >> CELL_BITS & (LEAF_SIZE - 1);
	int i;

	if (in_leaf + SLACK_BYTES >= LEAF_SIZE || slack >> 8 * SLACK_BYTES)
		return 0;
	/* The cells must be the block's own. glibc leaves no small block so much. */
	if (usable(block) < (SLACK_BYTES + 1) << CELL_BITS)
		return 0;
	for (i = 0; i < SLACK_BYTES; i++)
		((volatile __u8 *)cell)[1 + i] = slack >> 8 * i;
	*(volatile __u8 *)cell = LONG_SLACK | half_of(block);
	return 1;
}

/* Returns whether there was room. */
OFTEN int record_in(__u8 *cell, __u64 block, __u64 slack)
{
	if (unlikely(!cell))
		return 0;
	if (unlikely(slack + 1 >= LONG_SLACK))
		return record_long(cell, block, slack);
	*(volatile __u8 *)cell = (slack + 1) | half_of(block);
	return 1;
}

RARE __u64 take_long(__u8 *cell)
{
	__u64 slack = 0;
	int i;

	for (i = 0; i < SLACK_BYTES; i++)
		slack |= (__u64)cell[1 + i] << 8 * i;
	/* No block begins there. */
	for (i = 0; i < SLACK_BYTES; i++)
		((volatile __u8 *)cell)[1 + i] = 0;
	return slack;
}

static struct large *bucket_of(__u64 block)
{
	return W.large[(block >> 12 ^ block >> 22) & (BUCKETS - 1)];
}

/* Marks a place in a bucket that is being filled. No block has this address. */
enum { FILLING = 1 };

/* Only one thread handles a block at a time. */
RARE int record_large(__u64 block, __u64 slack)
{
	struct large *large = bucket_of(block);
	__u64 none;
	int i;

	if (is_mapped(block))
		check_header(block);
	for (i = 0; i < IN_BUCKET; i++) {
		none = 0;
		if (!__atomic_compare_exchange_n(&large[i].block, &none, FILLING, 0,
						 __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		large[i].slack = slack;
		__atomic_store_n(&large[i].block, block, __ATOMIC_RELEASE);
		return 1;
	}
	return record_in(cell_of(block, 1), block, slack);
}

/* Records a block. Returns whether there was room. */
OFTEN int record(__u64 block, __u64 size)
{
	__u64 slack = usable(block) - size;

	if (unlikely(header(block) >= LARGE))
		return record_large(block, slack);
	return record_in(cell_of(block, 1), block, slack);
}

/* The size that a cell says its block has; -1 if the block is not recorded. Forgets the block. */
OFTEN __s64 take_cell(__u8 *cell, __u64 block)
{
	__u64 slack;

	if (unlikely(!cell || !*(volatile __u8 *)cell))
		return -1;
	slack = (*(volatile __u8 *)cell & SLACK_MASK) - 1;
	if (unlikely(slack + 1 == LONG_SLACK))
		slack = take_long(cell);
	*(volatile __u8 *)cell = 0;
	return usable(block) - slack;
}

RARE __s64 take_large(__u64 block)
{
	struct large *large = bucket_of(block);
	__u64 slack;
	int i;

	for (i = 0; i < IN_BUCKET; i++) {
		if (__atomic_load_n(&large[i].block, __ATOMIC_ACQUIRE) != block)
			continue;
		slack = large[i].slack;
		__atomic_store_n(&large[i].block, 0, __ATOMIC_RELEASE);
		return usable(block) - slack;
	}
	return take_cell(cell_of(block, 0), block);
}

/* Forgets a block. Returns its size; -1 if it was not recorded. */
OFTEN __s64 take(__u64 block)
{
	if (unlikely(header(block) >= LARGE))
		return take_large(block);
	return take_cell(cell_of(block, 0), block);
}

/* ---- counting --------------------------------------------------------------------------- */

RARE void raise_peak(__u64 live)
{
	__u64 peak = now(&W.head.peak);

	while (live > peak && !__atomic_compare_exchange_n(&W.head.peak, &peak, live, 0,
							   __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

RARE void count_unrecorded(__u64 size)
{
	add_locked(&W.head.unrecorded, 1);
	add_locked(&W.head.unrecorded_bytes, size);
}

/* While a process has one thread, all its counters are in one line. */
OFTEN void note_peak(struct line *line)
{
	__s64 live = now(&line->live);

	if (unlikely(!libc_single_threaded)) {
		if (!now(&W.head.several))
			W.head.several = 1;
	} else if (unlikely(live > (__s64)now(&W.head.peak))) {
		raise_peak(live);
	}
}

OFTEN void count_block(struct line *line, void *block, __u64 size)
{
	count(line, &line->allocs, 1);
	count(line, &line->alloc_bytes, size);
	if (unlikely(!record((__u64)block, size))) {
		count_unrecorded(size);
		return;
	}
	count(line, &line->live, size);
	note_peak(line);
}

/* A call has returned what it has allocated, if anything. */
OFTEN void *allocated(struct line *line, void *block, __u64 size)
{
	if (likely(block))
		count_block(line, block, size);
	else
		count(line, &line->failed, 1);
	leave(line);
	return block;
}

/* Counts the free of a block before it happens. Returns what `take` does. */
OFTEN __s64 count_free(struct line *line, void *block)
{
	__s64 size = take((__u64)block);

	if (unlikely(size < 0)) {
		count(line, &line->unknown_frees, 1);
		return size;
	}
	count(line, &line->frees, 1);
	count(line, &line->live, -size);
	return size;
}

/* The free has not happened. */
RARE void count_free_back(struct line *line, void *block, __s64 size)
{
	if (size < 0) {
		count(line, &line->unknown_frees, -1);
		return;
	}
	count(line, &line->frees, -1);
	count(line, &line->live, size);
	if (!record((__u64)block, size)) {
		count(line, &line->live, -size);
		count_unrecorded(size);
	}
}

/* ---- what the library's symbols lead to ------------------------------------------------- */

ENTRY void *inside_malloc(size_t size)
{
	struct line *line = enter();

	return allocated(line, libc_malloc(size), size);
}

ENTRY void inside_free(void *block)
{
	struct line *line;

	if (likely(block)) {
		line = enter();
		count_free(line, block);
		leave(line);
	}
	libc_free(block);
}

ENTRY void *inside_calloc(size_t count, size_t size)
{
	struct line *line = enter();

	return allocated(line, libc_calloc(count, size), count * size);
}

ENTRY void *inside_memalign(size_t align, size_t size)
{
	struct line *line = enter();

	return allocated(line, libc_memalign(align, size), size);
}

ENTRY void *inside_aligned_alloc(size_t align, size_t size)
{
	struct line *line = enter();

	return allocated(line, libc_aligned_alloc(align, size), size);
}

ENTRY void *inside_valloc(size_t size)
{
	struct line *line = enter();

	return allocated(line, libc_valloc(size), size);
}

ENTRY void *inside_pvalloc(size_t size)
{
	struct line *line = enter();

	return allocated(line, libc_pvalloc(size), size);
}

ENTRY int inside_posix_memalign(void **out, size_t align, size_t size)
{
	struct line *line = enter();
	int error = libc_posix_memalign(out, align, size);

	allocated(line, error ? 0 : *out, size);
	return error;
}

ENTRY void *inside_realloc(void *block, size_t size)
{
	struct line *line = enter();
	__s64 old;
	void *moved;

	if (!block)
		return allocated(line, libc_malloc(size), size);
	old = count_free(line, block);
	moved = libc_realloc(block, size);
	if (likely(moved)) {
		count_block(line, moved, size);
	} else if (size) {
		count_free_back(line, block, old);
		count(line, &line->failed, 1);
	}
	leave(line);
	return moved;
}

/* The library's function calls realloc by its symbol, unless the product overflows. */
ENTRY void *inside_reallocarray(void *block, size_t count_, size_t size)
{
	struct line *line;
	size_t product;

	if (__builtin_mul_overflow(count_, size, &product)) {
		line = enter();
		count(line, &line->failed, 1);
		leave(line);
	}
	return libc_reallocarray(block, count_, size);
}
