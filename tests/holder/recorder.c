// Records the live blocks of each process of a tree, for tests of what is said about them.
//
// The library is preloaded, and defines glibc's allocator family. Each process image has a file in
// $RECORDER_DIR, mapped shared, with a table of its live blocks. `tests/it/common/held.rs` reads
// the file while the process stops before its last system call.
//
// The table is in the memory that is searched for pointers to the blocks. So it has each address
// with all bits inverted. Nothing else of this library keeps an address of a block.
//
// A static program is linked with this file and with the linker's option --wrap for each function.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef WRAPPED
#define NAME(function) __wrap_##function
#define LIBC(function) __real_##function
#else
#define NAME(function) function
#define LIBC(function) __libc_##function
#endif

extern void *LIBC(malloc)(size_t);
extern void *LIBC(calloc)(size_t, size_t);
extern void *LIBC(realloc)(void *, size_t);
extern void *LIBC(memalign)(size_t, size_t);
extern void *LIBC(valloc)(size_t);
extern void *LIBC(pvalloc)(size_t);
extern void LIBC(free)(void *);

// A place of the table: the inverted address of a block, 0 if the place was never used, 1 if its
// block was freed.
struct place {
	_Atomic uint64_t inverted;
	_Atomic uint64_t size;
};

#define FREED 1
#ifndef PLACES_LOG
#define PLACES_LOG 22
#endif
#define PLACES (1UL << PLACES_LOG)

// The pages that the kernel wipes in a forked child, so that it sees that it needs a file of its
// own.
static _Atomic int *ready;
static struct place *table;

static _Noreturn void die(const char *why)
{
	if (write(2, why, strlen(why)) < 0)
		_exit(98);
	_exit(98);
}

static char *append(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	return to;
}

static char *append_number(char *to, uint64_t number)
{
	char digits[21], *digit = digits + sizeof(digits) - 1;

	*digit = 0;
	do
		*--digit = '0' + number % 10;
	while (number /= 10);
	return append(to, digit);
}

// The first call may come before libc has its environment. The kernel always has it.
static void directory(char *to, size_t size)
{
	static const char name[] = "\0RECORDER_DIR=";
	static char text[1 << 17];
	long fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/environ", O_RDONLY | O_CLOEXEC), n;
	size_t length = 1;
	char *found;

	text[0] = 0;
	while ((n = syscall(SYS_read, fd, text + length, sizeof(text) - length)) > 0)
		length += n;
	syscall(SYS_close, fd);
	found = memmem(text, length, name, sizeof(name) - 1);
	if (!found)
		die("recorder: RECORDER_DIR is not set\n");
	strncpy(to, found + sizeof(name) - 1, size);
	memset(text, 0, sizeof(text));
}

static void set_up(void)
{
	char path[4096 + 64] = "", *end;
	int saved = errno, is_fork = ready != NULL;
	size_t size = PLACES * sizeof(*table);
	long fd;

	if (!ready) {
		ready =
		    mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (ready == MAP_FAILED || madvise(ready, 4096, MADV_WIPEONFORK))
			die("recorder: no memory\n");
	}
	directory(path, 4096);
	end = append(path + strlen(path), "/");
	end = append_number(end, syscall(SYS_getpid));
	*append(end, is_fork ? ".fork" : ".exec") = 0;
	fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (fd < 0 || syscall(SYS_ftruncate, fd, size))
		die("recorder: no file in RECORDER_DIR\n");
	table = mmap(table, size, PROT_READ | PROT_WRITE, MAP_SHARED | (is_fork ? MAP_FIXED : 0),
		     fd, 0);
	if (table == MAP_FAILED)
		die("recorder: no table\n");
	syscall(SYS_close, fd);
	*ready = 1;
	errno = saved;
}

static size_t home(uint64_t inverted)
{
	return (inverted >> 4) * 0x9e3779b97f4a7c15ULL >> (64 - PLACES_LOG);
}

static void *allocated(void *block, size_t size)
{
	uint64_t inverted = ~(uint64_t)block;

	if (!block)
		return block;
	if (!ready || !*ready)
		set_up();
	for (size_t at = home(inverted), tries = 0; tries < PLACES;
	     at = (at + 1) % PLACES, tries++) {
		uint64_t old = table[at].inverted;

		if (old > FREED ||
		    !atomic_compare_exchange_strong(&table[at].inverted, &old, inverted))
			continue;
		table[at].size = size;
		return block;
	}
	die("recorder: the table is full\n");
}

static void freed(void *block)
{
	uint64_t inverted = ~(uint64_t)block;

	if (!block)
		return;
	if (!ready || !*ready)
		set_up();
	for (size_t at = home(inverted), tries = 0; tries < PLACES;
	     at = (at + 1) % PLACES, tries++) {
		if (table[at].inverted == inverted) {
			table[at].inverted = FREED;
			return;
		}
		if (!table[at].inverted)
			return;
	}
}

void *NAME(malloc)(size_t size)
{
	return allocated(LIBC(malloc)(size), size);
}

void *NAME(calloc)(size_t count, size_t size)
{
	return allocated(LIBC(calloc)(count, size), count * size);
}

void *NAME(memalign)(size_t alignment, size_t size)
{
	return allocated(LIBC(memalign)(alignment, size), size);
}

void *NAME(aligned_alloc)(size_t alignment, size_t size)
{
	return allocated(LIBC(memalign)(alignment, size), size);
}

void *NAME(valloc)(size_t size)
{
	return allocated(LIBC(valloc)(size), size);
}

void *NAME(pvalloc)(size_t size)
{
	return allocated(LIBC(pvalloc)(size), size);
}

int NAME(posix_memalign)(void **out, size_t alignment, size_t size)
{
	if (alignment % sizeof(void *) || !alignment || (alignment & (alignment - 1)))
		return EINVAL;

	void *block = allocated(LIBC(memalign)(alignment, size), size);

	if (!block)
		return ENOMEM;
	*out = block;
	return 0;
}

void NAME(free)(void *block)
{
	freed(block);
	LIBC(free)(block);
}

void *NAME(realloc)(void *block, size_t size)
{
	void *new;

	// Before the call: another thread may get the old block's address.
	freed(block);
	new = LIBC(realloc)(block, size);
	if (!new &&block && size)
		die("recorder: a realloc failed\n");
	return allocated(new, size);
}

void *NAME(reallocarray)(void *block, size_t count, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(count, size, &bytes)) {
		errno = ENOMEM;
		return NULL;
	}
	return NAME(realloc)(block, bytes);
}
