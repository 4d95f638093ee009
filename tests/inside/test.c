// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Tests inside.c as a part of this program, on this system's C library. Each test runs in a child,
 * whose counters begin with zeros. `test` without an argument runs all tests.
 */
#include "../../inside/inside.c"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

char libc_single_threaded = 1;
asm(".data\n"
    ".globl libc_code, libc_code_end\n"
    "libc_code: .zero 1\n"
    "libc_code_end:\n"
    ".text\n");

/* What a test does in the middle of libc's malloc. */
static void (*volatile in_malloc)(void);

void *libc_malloc(size_t size)
{
	if (in_malloc)
		in_malloc();
	return malloc(size);
}

void *libc_calloc(size_t count, size_t size)
{
	return calloc(count, size);
}

void *libc_realloc(void *block, size_t size)
{
	return realloc(block, size);
}

void *libc_reallocarray(void *block, size_t count, size_t size)
{
	size_t product;

	if (__builtin_mul_overflow(count, size, &product))
		return 0;
	return inside_realloc(block, product);
}

void *libc_memalign(size_t align, size_t size)
{
	return memalign(align, size);
}

void *libc_aligned_alloc(size_t align, size_t size)
{
	return aligned_alloc(align, size);
}

void *libc_valloc(size_t size)
{
	return valloc(size);
}

void *libc_pvalloc(size_t size)
{
	return pvalloc(size);
}

int libc_posix_memalign(void **out, size_t align, size_t size)
{
	return posix_memalign(out, align, size);
}

void libc_free(void *block)
{
	free(block);
}

size_t libc_malloc_usable_size(void *block)
{
	return malloc_usable_size(block);
}

/* The sums of all lines, as the kernel side makes them. */
static struct line sums(void)
{
	struct line sum = {0};
	int i;

	for (i = 0; i < LINES; i++) {
		sum.allocs += W.lines[i].allocs;
		sum.alloc_bytes += W.lines[i].alloc_bytes;
		sum.frees += W.lines[i].frees;
		sum.unknown_frees += W.lines[i].unknown_frees;
		sum.failed += W.lines[i].failed;
		sum.live += W.lines[i].live;
		sum.open += W.lines[i].open;
	}
	return sum;
}

#define CHECK(holds)                                                                               \
	do {                                                                                       \
		if (!(holds)) {                                                                    \
			struct line sum_ = sums();                                                 \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #holds);        \
			fprintf(stderr, "allocs %llu of %llu, frees %llu, unknown %llu, ",         \
				sum_.allocs, sum_.alloc_bytes, sum_.frees, sum_.unknown_frees);    \
			fprintf(stderr, "failed %llu, live %lld, open %lld\n", sum_.failed,        \
				sum_.live, sum_.open);                                             \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

/* Fails unless exactly this was counted. */
static void check_counts(__u64 allocs, __u64 bytes, __u64 frees, __s64 live)
{
	struct line sum = sums();

	CHECK(sum.allocs == allocs);
	CHECK(sum.alloc_bytes == bytes);
	CHECK(sum.frees == frees);
	CHECK(sum.live == live);
	CHECK(sum.open == 0);
	CHECK(sum.unknown_frees == 0);
	CHECK(W.head.unrecorded == 0);
	CHECK(!(S.flags & (CHUNKS_ODD | LINES_NOT_WIPED)));
}

static void every_size_is_remembered(void)
{
	static void *blocks[5000];
	__u64 bytes = 0;
	size_t size;

	for (size = 0; size < 5000; size++) {
		blocks[size] = inside_malloc(size);
		memset(blocks[size], 0xff, malloc_usable_size(blocks[size]));
		bytes += size;
	}
	check_counts(5000, bytes, 0, bytes);
	for (size = 0; size < 5000; size += 2) {
		inside_free(blocks[size]);
		bytes -= size;
	}
	check_counts(5000, 4999 * 2500, 2500, bytes);
	CHECK(W.head.peak == 4999 * 2500);
}

static void large_blocks_are_remembered(void)
{
	static void *blocks[6000];
	__u64 bytes = 0;
	int i;

	/* More than the buckets have room for. */
	for (i = 0; i < 6000; i++) {
		blocks[i] = inside_malloc(LARGE * 4 + i * 7);
		bytes += LARGE * 4 + i * 7;
	}
	check_counts(6000, bytes, 0, bytes);
	for (i = 0; i < 6000; i++)
		inside_free(blocks[i]);
	check_counts(6000, bytes, 6000, 0);
}

static void a_realloc_frees_and_allocates(void)
{
	void *block = inside_realloc(0, 10);

	check_counts(1, 10, 0, 10);
	block = inside_realloc(block, 300000);
	check_counts(2, 300010, 1, 300000);
	block = inside_realloc(block, 20);
	check_counts(3, 300030, 2, 20);
	block = inside_reallocarray(block, 3, 10);
	check_counts(4, 300060, 3, 30);
	CHECK(!inside_realloc(block, 0));
	check_counts(4, 300060, 4, 0);
	CHECK(sums().failed == 0);
}

static void what_fails_changes_no_sum(void)
{
	volatile size_t huge = SIZE_MAX / 4;
	void *const untouched = (void *)77, *out = untouched;
	void *block = inside_malloc(33), *other = inside_malloc(200000);

	CHECK(!inside_malloc(huge));
	CHECK(!inside_calloc(huge, 16));
	CHECK(!inside_realloc(0, huge));
	CHECK(!inside_realloc(block, huge));
	CHECK(!inside_realloc(other, huge));
	CHECK(!inside_reallocarray(block, huge, 16));
	CHECK(!inside_reallocarray(block, huge, 2));
	CHECK(!inside_memalign(64, huge));
	CHECK(!inside_aligned_alloc(64, huge));
	CHECK(!inside_valloc(huge));
	CHECK(!inside_pvalloc(huge));
	CHECK(inside_posix_memalign(&out, 3, 10) == EINVAL);
	CHECK(inside_posix_memalign(&out, 64, huge) == ENOMEM);
	CHECK(out == untouched);
	CHECK(sums().failed == 13);
	check_counts(2, 200033, 0, 200033);
	inside_free(block);
	inside_free(other);
	check_counts(2, 200033, 2, 0);
}

static void all_functions_count(void)
{
	void *block;

	inside_free(inside_calloc(3, 7));
	inside_free(inside_memalign(64, 100));
	inside_free(inside_aligned_alloc(4096, 5000));
	inside_free(inside_valloc(10));
	inside_free(inside_pvalloc(10));
	CHECK(!inside_posix_memalign(&block, 256, 1000));
	inside_free(block);
	inside_free(0);
	check_counts(6, 21 + 100 + 5000 + 10 + 10 + 1000, 6, 0);
}

/* More small blocks than the first memory for cells suffices for. libc changes errno of its own. */
static void fill_the_pool(int is_refused)
{
	enum { SIZE = LARGE / 2, COUNT = (POOL + 4) << (ZONE_BITS - 15) };
	struct rlimit none = {1 << 20, 1 << 20};
	static void *blocks[COUNT];
	struct line *own = line();
	__u64 pool;
	int i;

	for (i = 0; i < COUNT; i++)
		CHECK((blocks[i] = malloc(SIZE)));
	CHECK(!is_refused || !setrlimit(RLIMIT_AS, &none));
	pool = S.pool;
	errno = 99;
	for (i = 0; i < COUNT; i++)
		count_block(own, blocks[i], SIZE);
	for (i = 0; i < COUNT; i++)
		count_free(own, blocks[i]);
	CHECK(errno == 99);
	CHECK(sums().allocs == COUNT && sums().live == 0);
	CHECK(W.head.unrecorded == sums().unknown_frees);
	CHECK(!W.head.unrecorded == !is_refused);
	/* More was mapped, unless that was refused. */
	CHECK((S.pool >> PAGE_BITS != pool >> PAGE_BITS) && !(S.flags & LINES_NOT_WIPED));
	CHECK((S.pool - (__u64)inside_memory.pool > sizeof(inside_memory.pool)) == !is_refused);
}

static void errno_stays(void)
{
	errno = 99;
	inside_free(inside_malloc(10));
	inside_free(inside_malloc(LARGE * 8));
	CHECK(errno == 99);
	check_counts(2, 10 + LARGE * 8, 2, 0);
}

static void errno_stays_where_memory_is_mapped(void)
{
	fill_the_pool(0);
}

static void errno_stays_where_no_memory_can_be_mapped(void)
{
	fill_the_pool(1);
}

static void a_free_of_another_block_is_unknown(void)
{
	void *block = malloc(10), *large = malloc(LARGE * 8);

	inside_free(block);
	inside_free(large);
	CHECK(sums().unknown_frees == 2);
	CHECK(sums().frees == 0);
}

static void a_long_slack_is_remembered(void)
{
	__u64 block = (__u64)inside_malloc(5000);
	__u64 small;
	__u8 *cell = cell_of(block, 1);
	int i;

	CHECK(record_long(cell, block, 4321));
	CHECK((*cell & SLACK_MASK) == LONG_SLACK);
	CHECK(take(block) == (__s64)usable(block) - 4321);
	CHECK(take(block) == -1);
	/* Whoever looks for blocks finds none. */
	for (i = 0; i <= SLACK_BYTES; i++)
		CHECK(!cell[i]);
	/* The cells behind a small block belong to others. */
	small = (__u64)inside_malloc(100);
	CHECK(!record_long(cell_of(small, 1), small, LONG_SLACK));
	/* The cells behind the last ones of a leaf belong to another zone. */
	CHECK(!record_long(cell, (1ULL << ZONE_BITS) - 64, 4321));
	CHECK(!record_long(cell, block, 1ULL << 48));
}

static void a_cell_says_where_its_block_begins(void)
{
	static void *blocks[100];
	__u64 block;
	int i, halves = 0;

	for (i = 0; i < 100; i++) {
		blocks[i] = inside_malloc(40);
		block = (__u64)blocks[i];
		CHECK(!(*cell_of(block, 0) & SECOND_HALF) == !(block & 16));
		halves += !(block & 16);
	}
	/* Both occur: chunks of 48 bytes take turns. */
	CHECK(halves > 0 && halves < 100);
	for (i = 0; i < 100; i++)
		inside_free(blocks[i]);
	check_counts(100, 4000, 100, 0);
}

static void many_zones_have_cells(void)
{
	__u64 zone;

	/* As many as the table has, at the same places. */
	for (zone = 1; zone < TRIES; zone++)
		*find_cell((zone * LEAVES) << ZONE_BITS, 1) = zone;
	for (zone = 1; zone < TRIES; zone++)
		CHECK(*cell_of((zone * LEAVES) << ZONE_BITS, 0) == (__u8)zone);
	CHECK(!find_cell(1ULL << 47, 1));
}

static void without_memory_a_block_is_unrecorded(void)
{
	struct rlimit limit = {1 << 20, 1 << 20};
	struct line *own = line();
	void *block;

	block = malloc(1000);
	S.pool = 0;
	CHECK(!setrlimit(RLIMIT_AS, &limit));
	count_block(own, block, 1000);
	CHECK(W.head.unrecorded == 1 && W.head.unrecorded_bytes == 1000);
	CHECK(sums().live == 0 && sums().allocs == 1);
}

enum { THREADS = LINES + 100, CALLS = 1000 };

static pthread_barrier_t barrier;
static void *passed[THREADS];

static void *allocate_and_pass(void *number)
{
	long own = (long)number;
	int i;

	for (i = 0; i < CALLS; i++)
		inside_free(inside_malloc(i));
	passed[own] = inside_malloc(own);
	pthread_barrier_wait(&barrier);
	inside_free(passed[(own + 1) % THREADS]);
	return 0;
}

/* More threads than lines, and each frees a block of another one. */
static void threads_count_for_themselves(void)
{
	static pthread_t threads[THREADS];
	__u64 bytes = (__u64)THREADS * (CALLS * (CALLS - 1) / 2) + THREADS * (THREADS - 1) / 2;
	pthread_attr_t small;
	long i;

	libc_single_threaded = 0;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	pthread_barrier_init(&barrier, 0, THREADS);
	for (i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&threads[i], &small, allocate_and_pass, (void *)i));
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], 0);
	check_counts(THREADS * (CALLS + 1ULL), bytes, THREADS * (CALLS + 1ULL), 0);
	CHECK(W.head.several);
	CHECK(S.flags & LINES_SHARED);
}

static volatile sig_atomic_t signals;

static void allocate_in_handler(int signal)
{
	(void)signal;
	signals++;
	/* Of the mapped kind, for which libc takes no lock. */
	inside_free(inside_malloc(LARGE * 4));
}

/* libc itself does not bear such a handler, so blocks come from a place that does. */
static void handlers_may_allocate(void)
{
	struct itimerval often = {{0, 50}, {0, 50}}, never = {0};
	void *block = malloc(100);
	struct line *own = line();
	long i;

	mallopt(M_MMAP_THRESHOLD, LARGE);
	signal(SIGALRM, allocate_in_handler);
	setitimer(ITIMER_REAL, &often, 0);
	for (i = 0; signals < 2000; i++) {
		own = enter();
		allocated(own, block, 100);
		own = enter();
		count_free(own, block);
		leave(own);
	}
	setitimer(ITIMER_REAL, &never, 0);
	check_counts(i + signals, i * 100 + signals * LARGE * 4ULL, i + signals, 0);
	CHECK(W.head.crossed == 0);
}

static jmp_buf out;

static void jump_out(void)
{
	in_malloc = 0;
	longjmp(out, 1);
}

static void a_call_that_was_jumped_out_of_stays_open(void)
{
	in_malloc = jump_out;
	if (!setjmp(out))
		inside_malloc(10);
	inside_malloc(20);
	CHECK(sums().open == 1);
	CHECK(sums().allocs == 1 && sums().alloc_bytes == 20);
}

static volatile pid_t child;

/* How many pages of the counters are in memory. */
static int pages_present(void)
{
	int count = 0, i, file = open("/proc/self/pagemap", O_RDONLY);
	enum { PAGE = 4096 };
	__u64 page;

	CHECK(file >= 0);
	for (i = 0; i < (int)(sizeof(W.lines) / PAGE); i++) {
		off_t at = ((__u64)&W / PAGE + i) * sizeof(page);

		CHECK(pread(file, &page, sizeof(page), at) == sizeof(page));
		count += page >> 63;
	}
	close(file);
	return count;
}

static void a_child_touches_what_is_read(void)
{
	int status;

	inside_free(inside_malloc(1));
	S.threads = 200;
	child = fork();
	if (!child) {
		CHECK(pages_present() == 0);
		inside_free(inside_malloc(1));
		CHECK(W.head.told);
		/* The first line is not at the start of its page. */
		CHECK(pages_present() == 4);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && !status);
}

static void fork_now(void)
{
	in_malloc = 0;
	child = fork();
}

static void a_child_begins_with_zeros(void)
{
	void *block = inside_malloc(10), *large = inside_malloc(LARGE * 4);
	int status;

	child = fork();
	if (!child) {
		check_counts(0, 0, 0, 0);
		inside_free(block);
		inside_free(large);
		CHECK(sums().unknown_frees == 2);
		inside_free(inside_malloc(7));
		CHECK(sums().allocs == 1 && sums().alloc_bytes == 7 && sums().live == 0);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && !status);
	inside_free(block);
	inside_free(large);
	check_counts(2, 10 + LARGE * 4, 2, 0);
}

static void a_fork_in_the_middle_of_a_call_is_known(void)
{
	int status;

	inside_malloc(1);
	in_malloc = fork_now;
	inside_malloc(10);
	if (!child) {
		/* The call returns in the child, too. */
		CHECK(sums().allocs == 1 && sums().live == 10 && sums().open == 0);
		CHECK(W.head.crossed == 1);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && !status);
	check_counts(2, 11, 0, 11);
	CHECK(W.head.crossed == 0);
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
#define TEST(name)                                                                                 \
	{                                                                                          \
#name, name                                                                        \
	}
    TEST(every_size_is_remembered),
    TEST(large_blocks_are_remembered),
    TEST(a_realloc_frees_and_allocates),
    TEST(what_fails_changes_no_sum),
    TEST(all_functions_count),
    TEST(errno_stays),
    TEST(errno_stays_where_memory_is_mapped),
    TEST(errno_stays_where_no_memory_can_be_mapped),
    TEST(a_free_of_another_block_is_unknown),
    TEST(a_long_slack_is_remembered),
    TEST(a_cell_says_where_its_block_begins),
    TEST(many_zones_have_cells),
    TEST(without_memory_a_block_is_unrecorded),
    TEST(threads_count_for_themselves),
    TEST(handlers_may_allocate),
    TEST(a_call_that_was_jumped_out_of_stays_open),
    TEST(a_child_begins_with_zeros),
    TEST(a_child_touches_what_is_read),
    TEST(a_fork_in_the_middle_of_a_call_is_known),
};

int main(void)
{
	int status, failed = 0;
	size_t i;
	pid_t pid;

	for (i = 0; i < sizeof(tests) / sizeof(*tests); i++) {
		pid = fork();
		if (!pid) {
			tests[i].run();
			_exit(0);
		}
		if (waitpid(pid, &status, 0) != pid || status) {
			fprintf(stderr, "%s: failed (%#x)\n", tests[i].name, status);
			failed = 1;
		}
	}
	printf("%zu tests\n", i);
	return failed;
}
