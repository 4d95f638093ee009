// An interposing counter. memleak must agree with its counts to the byte.
//
// The library is preloaded into every program of a tree and defines glibc's allocator family. It
// forwards each call to the function in libc that the program would have called. For each process
// image it keeps the counters that memleak keeps in the kernel. It shares nothing with memleak: no
// kernel, no probe, no code. Each image has a file in $COUNTER_DIR, mapped shared, so that the
// counts survive every end of the image: exit, _exit, a signal, an exec.
// `tests/it/common/counter.rs` reads the files.
//
// What the counter must get right, and how:
//
// - Its own work calls no allocator and takes no lock, because a signal handler may call malloc
//   while a malloc is being counted. The table of live blocks is a hash table in pages of its own,
//   changed only by atomics.
// - A forked child gets a heap of its own. State and table lie in pages that the kernel wipes in
//   the child (MADV_WIPEONFORK), so the child finds them empty at its first call. A vfork or
//   CLONE_VM child shares the pages and the counters, as it shares the heap.
// - Nested calls count once. glibc's allocator calls its own functions directly, which an
//   interposer does not see. The one exception is reallocarray (see there). There is no flag for
//   "nested", which a siglongjmp could leave set. There is no thread-local storage, which would
//   change what the program's threads allocate.
//
// The counter does not see calls to __libc_malloc and the like by name. It does not see programs
// that are static or that drop LD_PRELOAD. It does not see calls that the dynamic loader serves
// itself before libc is ready.

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef WITH_STACKS
#define EXPORT __attribute__((visibility("hidden"), used))
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define HIDDEN __attribute__((visibility("hidden")))

typedef _Atomic uint64_t count;

// The file of one image. tests/it/common/counter.rs has the same layout.
struct image {
	uint64_t magic; // set last: without it the file is unfinished
	uint64_t pid;	// in the process's own pid namespace
	uint64_t kind;	// 0: an exec began the image, 1: a fork
	uint64_t start; // CLOCK_MONOTONIC, nanoseconds: orders the images of a pid
	count total_allocs_bytes;
	count alloc_count;
	count free_count;
	count leaked_bytes;
	count leaked_blocks;
	count failed_allocs;
	count unknown_frees;
	count table_full; // blocks without a place: not 0 makes the test void
	char comm[16];
	char exe[256];
};
_Static_assert(offsetof(struct image, comm) == 96, "tests/it/common/counter.rs has this offset");
_Static_assert(sizeof(struct image) == 368, "tests/it/common/counter.rs has this size");

#define MAGIC 0x31746e756f636c6dULL

// tests/unwinder/unwinder.c includes this file, and defines what is done about call stacks. The
// counter alone does nothing about them.
#ifndef WITH_STACKS
#define CALLER ((struct caller){0})
struct caller {
	char unused;
};
static inline void begin_stacks(const char *path, int fork)
{
	(void)path, (void)fork;
}
static inline uint32_t stack_of(struct caller caller, size_t size)
{
	(void)caller, (void)size;
	return 0;
}
static inline void stack_lives(uint32_t stack, int64_t blocks, int64_t bytes)
{
	(void)stack, (void)blocks, (void)bytes;
}
#endif

// unwinder.c defines these otherwise.
#ifndef LOOKUP
#define LOOKUP(f) lookup(&libc_##f, #f)
#define REALLOC "realloc"
#endif

// The table of live blocks: buckets of five, 2.6 million blocks in 64 MiB of pages. The pages cost
// nothing until they are touched. A block whose bucket is full goes to the next bucket. Each full
// bucket counts in `passed` the blocks that went past it. So a search knows where it may stop, and
// no tombstones pile up.
#define BUCKETS (1UL << 19)
#define PER_BUCKET 5

struct bucket {
	_Atomic uint64_t passed;
	struct {
		_Atomic uintptr_t addr;
		_Atomic size_t size;
		_Atomic uint64_t stack; // what stack_of() returned
	} block[PER_BUCKET];
};
_Static_assert(sizeof(struct bucket) == 128, "a bucket has two cache lines");

// A block as it is outside of the table.
struct held {
	size_t size;
	uint32_t stack;
};

// Everything that a forked child must find empty.
struct heap {
	_Atomic int ready; // 0: new, 1: being set up, 2: `image` belongs to this heap
	struct bucket bucket[BUCKETS];
};

static struct heap *heap;
// Kept over a fork: the child maps its own file over its parent's.
static struct image *image;
static char directory[PATH_MAX];

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void *__libc_valloc(size_t);
extern void *__libc_pvalloc(size_t);
extern void __libc_free(void *);

// The functions in libc. Those of the first group have a second name at the same address. The
// constructor proves that the addresses are the same. The others are looked up.
static void *(*const libc_malloc)(size_t) = __libc_malloc;
static void *(*const libc_calloc)(size_t, size_t) = __libc_calloc;
HIDDEN void *(*const counter_libc_realloc)(void *, size_t) = __libc_realloc;
static void *(*const libc_memalign)(size_t, size_t) = __libc_memalign;
static void *(*const libc_valloc)(size_t) = __libc_valloc;
static void *(*const libc_pvalloc)(size_t) = __libc_pvalloc;
static void (*const libc_free)(void *) = __libc_free;
#ifndef STATIC
static _Atomic(void *) libc_aligned_alloc, libc_posix_memalign, libc_reallocarray;
#endif

static _Noreturn void die(const char *why)
{
	syscall(SYS_write, 2, "counter: ", 9);
	syscall(SYS_write, 2, why, strlen(why));
	syscall(SYS_write, 2, "\n", 1);
	syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
	for (;;)
		;
}

#ifndef STATIC
// A search for a symbol as dlsym(RTLD_NEXT, name) makes it. dlsym allocates up to glibc 2.33.
struct search {
	const char *name;
	int behind_us;
	uintptr_t found;
};

static uint32_t gnu_hash(const char *name)
{
	uint32_t hash = 5381;

	while (*name)
		hash = hash * 33 + (unsigned char)*name++;
	return hash;
}

// Searches an object if it comes after this library. The loader has turned the pointers in the
// object's dynamic section into addresses, except in the kernel's own object.
static int look_into(struct dl_phdr_info *object, size_t size, void *data)
{
	struct search *search = data;
	const ElfW(Dyn) *dynamic = NULL;
	const ElfW(Sym) *symbols = NULL;
	const char *names = NULL;
	const uint32_t *table = NULL, *buckets, *chains;
	uint32_t hash = gnu_hash(search->name), i;
	uintptr_t here = (uintptr_t)&look_into;
	int is_us = 0;

	(void)size;
	for (int n = 0; n < object->dlpi_phnum; n++) {
		const ElfW(Phdr) *header = &object->dlpi_phdr[n];
		uintptr_t start = object->dlpi_addr + header->p_vaddr;

		if (header->p_type == PT_DYNAMIC)
			dynamic = (const void *)start;
		is_us |= header->p_type == PT_LOAD && here - start < header->p_memsz;
	}
	if (is_us || !search->behind_us || !dynamic) {
		search->behind_us |= is_us;
		return 0;
	}
	for (; dynamic->d_tag != DT_NULL; dynamic++) {
		if (dynamic->d_un.d_ptr < object->dlpi_addr)
			continue;
		if (dynamic->d_tag == DT_SYMTAB)
			symbols = (const void *)dynamic->d_un.d_ptr;
		else if (dynamic->d_tag == DT_STRTAB)
			names = (const void *)dynamic->d_un.d_ptr;
		else if (dynamic->d_tag == DT_GNU_HASH)
			table = (const void *)dynamic->d_un.d_ptr;
	}
	if (!symbols || !names || !table || !table[0])
		return 0;
	// table: number of buckets, first symbol with a hash, words of the filter, its shift; then
	// the filter
	buckets = table + 4 + table[2] * (sizeof(ElfW(Addr)) / sizeof(*table));
	chains = buckets + table[0];
	i = buckets[hash % table[0]];
	if (i < table[1])
		return 0;
	for (;; i++) {
		uint32_t other = chains[i - table[1]];

		if ((other | 1) == (hash | 1) && symbols[i].st_shndx != SHN_UNDEF &&
		    !strcmp(names + symbols[i].st_name, search->name)) {
			search->found = object->dlpi_addr + symbols[i].st_value;
			return 1;
		}
		if (other & 1)
			return 0;
	}
}

static void *next(const char *name)
{
	struct search search = {.name = name};

	dl_iterate_phdr(look_into, &search);
	return (void *)search.found;
}

static void *lookup(_Atomic(void *) *slot, const char *name)
{
	void *f = atomic_load_explicit(slot, memory_order_relaxed);

	if (!f) {
		f = next(name);
		if (!f)
			die("libc lacks a function of the allocator family");
		atomic_store_explicit(slot, f, memory_order_relaxed);
	}
	return f;
}
#endif

// Reads $COUNTER_DIR. The first call can come from the dynamic loader, before libc has its
// environment. The kernel always has it.
static void find_directory(void)
{
	static const char name[] = "COUNTER_DIR=";
	char buf[4096];
	size_t matched = 0, len = 0;
	int value = 0, skip = 0;
	long fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/environ", O_RDONLY | O_CLOEXEC), n;

	if (fd < 0)
		die("cannot read /proc/self/environ");
	while ((n = syscall(SYS_read, fd, buf, sizeof(buf))) > 0) {
		for (long i = 0; i < n; i++) {
			char c = buf[i];

			if (value && (c == 0 || len == sizeof(directory) - 1)) {
				directory[len] = 0;
				goto out;
			}
			if (value) {
				directory[len++] = c;
			} else if (c == 0) {
				matched = 0;
				skip = 0;
			} else if (!skip && c == name[matched]) {
				value = ++matched == sizeof(name) - 1;
			} else {
				skip = 1;
			}
		}
	}
	die("COUNTER_DIR is not set");
out:
	syscall(SYS_close, fd);
}

static char *append(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	*to = 0;
	return to;
}

static char *append_number(char *to, uint64_t n)
{
	char digits[21], *d = digits + sizeof(digits) - 1;

	*d = 0;
	do
		*--d = '0' + n % 10;
	while (n /= 10);
	return append(to, d);
}

static void read_file(const char *path, char *to, size_t size)
{
	long fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	long n = fd < 0 ? 0 : syscall(SYS_read, fd, to, size - 1);

	to[n > 0 ? n - 1 : 0] = 0; // drops the newline
	if (fd >= 0)
		syscall(SYS_close, fd);
}

// Gives this heap its file. `fork`: the process has its parent's image mapped.
static void new_image(int fork)
{
	char path[PATH_MAX + 64];
	struct timespec now;
	struct image *new;
	uint64_t pid = syscall(SYS_getpid), start;
	long fd;

	syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
	start = now.tv_sec * 1000000000ULL + now.tv_nsec;
	append_number(append(append_number(append(append(path, directory), "/"), pid), "."), start);
	fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0 || syscall(SYS_ftruncate, fd, sizeof(*new)) < 0)
		die("cannot create a file in COUNTER_DIR");
	new = mmap(image, sizeof(*new), PROT_READ | PROT_WRITE, MAP_SHARED | (fork ? MAP_FIXED : 0),
		   fd, 0);
	if (new == MAP_FAILED)
		die("cannot map the counters");
	syscall(SYS_close, fd);
	new->pid = pid;
	new->kind = fork;
	new->start = start;
	read_file("/proc/self/comm", new->comm, sizeof(new->comm));
	if (syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", new->exe, sizeof(new->exe) - 1) < 0)
		new->exe[0] = 0;
	begin_stacks(path, fork);
	new->magic = MAGIC;
	image = new;
}

static void set_up(void)
{
	uint64_t all = ~0ULL, mask;
	int saved = errno, expected = 0, fork = heap != NULL;

	// A handler that calls malloc in the middle of this function would wait for itself.
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof(mask));
	if (!fork) {
		// No second thread can be here. One thread starts an image, and its loader or
		// constructor() calls this function long before it can start another thread.
		void *p = mmap(NULL, sizeof(*heap), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (p == MAP_FAILED || madvise(p, sizeof(*heap), MADV_WIPEONFORK))
			die("cannot map the table of live blocks");
		madvise(p, sizeof(*heap), MADV_DONTDUMP);
		madvise(p, sizeof(*heap), MADV_NOHUGEPAGE);
		heap = p;
		find_directory();
	}
	if (atomic_compare_exchange_strong(&heap->ready, &expected, 1)) {
		new_image(fork);
		atomic_store(&heap->ready, 2);
	} else {
		while (atomic_load(&heap->ready) != 2)
			syscall(SYS_sched_yield);
	}
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof(mask));
	errno = saved;
}

static inline void ready(void)
{
	if (!heap || atomic_load_explicit(&heap->ready, memory_order_acquire) != 2)
		set_up();
}

static inline void add(count *c, uint64_t n)
{
	atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

static inline void sub(count *c, uint64_t n)
{
	atomic_fetch_sub_explicit(c, n, memory_order_relaxed);
}

static size_t home(uintptr_t addr)
{
	return (addr >> 4) * 0x9e3779b97f4a7c15ULL >> 45; // the upper 19 bits
}
_Static_assert(BUCKETS == 1UL << (64 - 45), "home() yields one of BUCKETS");

static void insert(uintptr_t addr, struct held held)
{
	size_t start = home(addr);

	for (size_t b = start; b != start + BUCKETS; b++) {
		struct bucket *bucket = &heap->bucket[b % BUCKETS];

		for (int i = 0; i < PER_BUCKET; i++) {
			uintptr_t empty = 0;

			if (atomic_compare_exchange_strong(&bucket->block[i].addr, &empty, addr)) {
				// The caller that may free the block gets it later, from this call.
				atomic_store(&bucket->block[i].size, held.size);
				atomic_store(&bucket->block[i].stack, held.stack);
				return;
			}
		}
		atomic_fetch_add(&bucket->passed, 1);
	}
	add(&image->table_full, 1);
}

// Removes a block from the table and stores what was there. Returns 0 if it is not a block of this
// heap.
static int take(uintptr_t addr, struct held *held)
{
	size_t start = home(addr);

	for (size_t b = start; b != start + BUCKETS; b++) {
		struct bucket *bucket = &heap->bucket[b % BUCKETS];

		for (int i = 0; i < PER_BUCKET; i++) {
			if (atomic_load(&bucket->block[i].addr) != addr)
				continue;
			held->size = atomic_load(&bucket->block[i].size);
			held->stack = atomic_load(&bucket->block[i].stack);
			atomic_store(&bucket->block[i].addr, 0);
			for (; start != b; start++)
				atomic_fetch_sub(&heap->bucket[start % BUCKETS].passed, 1);
			return 1;
		}
		if (atomic_load(&bucket->passed) == 0)
			break;
	}
	return 0;
}

static void *allocated(struct caller caller, void *p, size_t size)
{
	ready();
	if (p) {
		struct held held = {size, stack_of(caller, size)};

		insert((uintptr_t)p, held);
		stack_lives(held.stack, 1, size);
		add(&image->total_allocs_bytes, size);
		add(&image->alloc_count, 1);
		add(&image->leaked_bytes, size);
		add(&image->leaked_blocks, 1);
	} else {
		add(&image->failed_allocs, 1);
	}
	return p;
}

static void freed(int ours, struct held held)
{
	if (ours) {
		stack_lives(held.stack, -1, -(int64_t)held.size);
		add(&image->free_count, 1);
		sub(&image->leaked_bytes, held.size);
		sub(&image->leaked_blocks, 1);
	} else {
		add(&image->unknown_frees, 1);
	}
}

EXPORT void *malloc(size_t size)
{
	return allocated(CALLER, libc_malloc(size), size);
}

EXPORT void *calloc(size_t n, size_t size)
{
	// If the product overflows, libc returns NULL and the product is not used.
	return allocated(CALLER, libc_calloc(n, size), n * size);
}

EXPORT void *memalign(size_t alignment, size_t size)
{
	return allocated(CALLER, libc_memalign(alignment, size), size);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
	void *(*f)(size_t, size_t) = LOOKUP(aligned_alloc);

	return allocated(CALLER, f(alignment, size), size);
}

EXPORT void *valloc(size_t size)
{
	return allocated(CALLER, libc_valloc(size), size);
}

EXPORT void *pvalloc(size_t size)
{
	return allocated(CALLER, libc_pvalloc(size), size);
}

EXPORT int posix_memalign(void **out, size_t alignment, size_t size)
{
	int (*f)(void **, size_t, size_t) = LOOKUP(posix_memalign);
	int error = f(out, alignment, size);

	allocated(CALLER, error ? NULL : *out, size);
	return error;
}

EXPORT void free(void *p)
{
	struct held held = {0};

	if (p) {
		int ours;

		ready();
		// Before the call, because libc can then give the address to another thread.
		ours = take((uintptr_t)p, &held);
		freed(ours, held);
	}
	libc_free(p);
}

// The second half of a realloc that returned `new`. `zero`: the caller asked for 0 bytes.
static void *reallocated(struct caller caller, void *p, int ours, struct held old, void *new,
			 size_t size, int zero)
{
	ready(); // again: a handler that interrupted the call may have forked
	if (!new && !(p && zero)) {
		if (ours)
			insert((uintptr_t)p, old);
		add(&image->failed_allocs, 1);
		return NULL;
	}
	if (p)
		freed(ours, old);
	return new ? allocated(caller, new, size) : NULL;
}

// realloc() below, when it is not nested.
HIDDEN void *counter_realloc(void *p, size_t size)
{
	struct held old = {0};
	int ours;

	ready();
	// Removed before the call: libc may free the old block, and another thread may get its
	// address before the call returns.
	ours = p && take((uintptr_t)p, &old);
	return reallocated(CALLER, p, ours, old, counter_libc_realloc(p, size), size, size == 0);
}

// glibc's reallocarray multiplies and jumps to realloc, through the table that leads to this
// library's realloc. That inner call must reach libc with the stack and the return address that
// reallocarray left, as it would without this library. It does not count as a separate call. Two
// registers that a callee must preserve identify it. While reallocarray runs, they hold a secret
// and the place of its return address. A signal handler that interrupts reallocarray inherits the
// registers, but runs at another place. A siglongjmp out of it restores both registers.
HIDDEN void *counter_call_reallocarray(void *p, size_t n, size_t size, void *f);

#define SECRET "0x6f9d3a1c57e2b804"

#if defined(__x86_64__)
__asm__(".text\n"
	".globl counter_call_reallocarray\n"
	".hidden counter_call_reallocarray\n"
	".type counter_call_reallocarray, @function\n"
	"counter_call_reallocarray:\n"
	"	.cfi_startproc\n"
	"	push %r12\n"
	"	.cfi_adjust_cfa_offset 8\n"
	"	.cfi_rel_offset %r12, 0\n"
	"	push %r13\n"
	"	.cfi_adjust_cfa_offset 8\n"
	"	.cfi_rel_offset %r13, 0\n"
	"	sub $8, %rsp\n"
	"	.cfi_adjust_cfa_offset 8\n"
	"	movabs $" SECRET ", %r12\n"
	"	lea -8(%rsp), %r13\n"
	"	call *%rcx\n"
	"	add $8, %rsp\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	pop %r13\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	pop %r12\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size counter_call_reallocarray, . - counter_call_reallocarray\n"
	".globl " REALLOC "\n"
	".type " REALLOC ", @function\n" REALLOC ":\n"
	"	.cfi_startproc\n"
	"	movabs $" SECRET ", %r11\n"
	"	cmp %r11, %r12\n"
	"	jne counter_realloc\n"
	"	mov %r13, %r11\n"
	"	sub %rsp, %r11\n"
	"	cmp $64, %r11\n" // a compiler may have saved registers and called instead of jumped
	"	ja counter_realloc\n"
	"	jmp *counter_libc_realloc(%rip)\n"
	"	.cfi_endproc\n"
	".size " REALLOC ", . - " REALLOC "\n");
#elif defined(__aarch64__)
__asm__(".text\n"
	".globl counter_call_reallocarray\n"
	".hidden counter_call_reallocarray\n"
	".type counter_call_reallocarray, %function\n"
	"counter_call_reallocarray:\n"
	"	.cfi_startproc\n"
	"	stp x29, x30, [sp, #-32]!\n"
	"	.cfi_adjust_cfa_offset 32\n"
	"	.cfi_rel_offset x29, 0\n"
	"	.cfi_rel_offset x30, 8\n"
	"	stp x19, x20, [sp, #16]\n"
	"	mov x29, sp\n"
	"	ldr x19, =" SECRET "\n"
	"	mov x20, sp\n"
	"	blr x3\n"
	"	ldp x19, x20, [sp, #16]\n"
	"	ldp x29, x30, [sp], #32\n"
	"	.cfi_adjust_cfa_offset -32\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size counter_call_reallocarray, . - counter_call_reallocarray\n"
	".globl " REALLOC "\n"
	".type " REALLOC ", %function\n" REALLOC ":\n"
	"	.cfi_startproc\n"
	"	ldr x9, =" SECRET "\n"
	"	cmp x9, x19\n"
	"	b.ne counter_realloc\n"
	"	mov x9, sp\n"
	"	sub x9, x20, x9\n"
	"	cmp x9, #64\n"
	"	b.hi counter_realloc\n"
	"	adrp x9, counter_libc_realloc\n"
	"	ldr x9, [x9, #:lo12:counter_libc_realloc]\n"
	"	br x9\n"
	"	.cfi_endproc\n"
	".size " REALLOC ", . - " REALLOC "\n");
#else
#error "reallocarray needs a few instructions for this architecture"
#endif

EXPORT void *reallocarray(void *p, size_t n, size_t size)
{
	void *f = LOOKUP(reallocarray);
	struct held old = {0};
	size_t bytes;
	int ours, overflow;

	ready();
	overflow = __builtin_mul_overflow(n, size, &bytes);
	ours = p && take((uintptr_t)p, &old);
	return reallocated(CALLER, p, ours, old, counter_call_reallocarray(p, n, size, f), bytes,
			   !overflow && bytes == 0);
}

#ifndef STATIC
// The functions of libc that this file calls by another name must be those that come next.
static void check_names(void)
{
	static const struct {
		const char *name;
		void *f;
	} same[] = {
	    {"malloc", __libc_malloc},	   {"calloc", __libc_calloc}, {"realloc", __libc_realloc},
	    {"memalign", __libc_memalign}, {"valloc", __libc_valloc}, {"pvalloc", __libc_pvalloc},
	    {"free", __libc_free},
	};

	for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++)
		if (next(same[i].name) != same[i].f)
			die("the allocator after the counter is not libc's");
	LOOKUP(aligned_alloc);
	LOOKUP(posix_memalign);
	LOOKUP(reallocarray);
}
#endif

// Every image gets a file, even one that never allocates.
__attribute__((constructor)) static void constructor(void)
{
	ready();
#ifndef STATIC
	check_names();
#endif
}
