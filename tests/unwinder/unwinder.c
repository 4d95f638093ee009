// The reference for memleak's call stacks: the interposing counter, which also records libgcc's
// stack of every allocation. memleak must have the same stacks, with the same blocks and bytes.
//
// libgcc unwinds as an exception would, in the process itself and at the moment of the call. It
// shares nothing with memleak, which unwinds in the kernel by tables of its own.
//
// Beside the counter's file of an image stands one for its stacks, NAME.stacks. It is mapped
// shared, so it survives every end of the image, too. A forked child maps a file of its own over
// its parent's, and so starts empty. `tests/it/common/unwinder.rs` reads the files.
//
// - A frame is a module and an ELF address in it. _dl_find_object says at that moment which object
//   has the frame. So two libraries that are at one address, one after the other, are told apart.
//   It takes no lock, other than dl_iterate_phdr: a handler that interrupts the taking of that lock
//   would wait for itself, and a forked child for a thread that it does not have.
// - Code in no object is looked up in /proc/self/maps at that moment.
// - The frames of this library are left out. The walk knows the canonical frame address of the
//   interposed function, and the first frame of interest is the one that has it.
// - Nothing here takes a lock or allocates. A walk may be interrupted by a signal handler that
//   allocates, and may be left by a siglongjmp.
// - libgcc may allocate within an exception's search for tables, with a lock held. A walk would
//   wait for that lock. Such calls have no stack, and are counted apart. So are those of libc at
//   the start of a static program.
//
// For a static program, compile this file with -DSTATIC and link with -Wl,--wrap=malloc and so on.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <malloc.h>
#include <sys/auxv.h>
#include <unwind.h>

#ifndef DLFO_STRUCT_HAS_EH_DBASE
#error "_dl_find_object is needed: glibc 2.35"
#endif

struct caller {
	uintptr_t cfa;	     // of the interposed function
	uintptr_t return_to; // its return address
};
#define CALLER                                                                                     \
	((struct caller){(uintptr_t)__builtin_dwarf_cfa(), (uintptr_t)__builtin_return_address(0)})
#define WITH_STACKS

static void begin_stacks(const char *path, int fork);
static uint32_t stack_of(struct caller caller, size_t size);
static void stack_lives(uint32_t stack, int64_t blocks, int64_t bytes);

#ifdef STATIC
void *__real_aligned_alloc(size_t, size_t);
int __real_posix_memalign(void **, size_t, size_t);
void *__real_reallocarray(void *, size_t, size_t);
#define LOOKUP(f) ((void *)__real_##f)
#define NAMED(f) __wrap_##f
#define REALLOC "__wrap_realloc"
#else
#define LOOKUP(f) lookup(&libc_##f, #f)
#define NAMED(f) unwinder_##f
#define REALLOC "unwinder_realloc"

// memleak must not take this library for an allocator: a return probe would put its trampoline
// where libgcc looks for the return address. memleak probes symbols that are functions. The loader
// also takes symbols without a type, so the names of the family are labels of that kind.
#if defined(__x86_64__)
#define JUMP "jmp "
#else
#define JUMP "b "
#endif
// A signal may interrupt the jump, so it has rules.
#define EXPORTED(f) ".globl " #f "\n" #f ": .cfi_startproc\n" JUMP "unwinder_" #f "\n.cfi_endproc\n"
__asm__(".pushsection .text\n" EXPORTED(malloc) EXPORTED(calloc) EXPORTED(realloc)
	    EXPORTED(memalign) EXPORTED(aligned_alloc) EXPORTED(valloc) EXPORTED(pvalloc)
		EXPORTED(posix_memalign) EXPORTED(free) EXPORTED(reallocarray) ".popsection\n");
#endif
#define malloc NAMED(malloc)
#define calloc NAMED(calloc)
#define memalign NAMED(memalign)
#define aligned_alloc NAMED(aligned_alloc)
#define valloc NAMED(valloc)
#define pvalloc NAMED(pvalloc)
#define posix_memalign NAMED(posix_memalign)
#define free NAMED(free)
#define reallocarray NAMED(reallocarray)

#include "../counter/counter.c"

// ---- the file of an image's stacks ----

// tests/it/common/unwinder.rs has the same layout.

#define STACKS_MAGIC 0x31646e69776e756dULL
#define SLOTS (1U << 18)
#define MODULES 4096
#define FILE_SIZE (512UL << 20)
#define MOST_FRAMES 4096

enum module_kind {
	OBJECT = 1, // an object that the loader knows: offsets are ELF addresses
	MAPPED = 2, // a file that was mapped by hand: offsets are in the file
};

struct module {
	_Atomic uint32_t kind; // set last
	uint32_t build_id_size;
	uint8_t build_id[24];
	char path[256];
};

enum end {
	COMPLETE, // a frame says that it has no caller
	NO_RULES, // the last frame's code has no .eh_frame
	PROBED,	  // the last frame's return address is the trampoline of a return probe
	BROKEN,	  // libgcc gave up otherwise
	TOO_DEEP,
};

// A frame: the upper 16 bits are the module plus one, or 0 where there is none and the rest is an
// address. EXACT: a signal interrupted here, so the offset is no return address.
#define MODULE_SHIFT 48
#define EXACT (1ULL << 47)

struct stack {
	uint64_t hash;
	count blocks;
	count bytes;
	count leaked_blocks;
	count leaked_bytes;
	uint32_t end;
	uint32_t frames;
	uint64_t frame[];
};

struct stacks {
	uint64_t magic;
	_Atomic uint64_t used; // bytes of the file
	count full;	       // calls without a place: not 0 makes the test void
	count unwalked_blocks; // calls by libgcc itself, or before it can walk
	count unwalked_bytes;
	_Atomic uint32_t modules;
	uint32_t unused;
	_Atomic uint32_t slot[SLOTS]; // a stack's place in the file, divided by 8
	struct module module[MODULES];
	struct stack first[];
};
_Static_assert(offsetof(struct stacks, slot) == 48, "tests/it/common/unwinder.rs has this offset");
_Static_assert(sizeof(struct module) == 288, "tests/it/common/unwinder.rs has this size");
_Static_assert(offsetof(struct stack, frame) == 48, "tests/it/common/unwinder.rs has this size");

// Kept over a fork, as `image` is.
static struct stacks *stacks;
// The path of the program, and where libgcc's shared library is.
static char own_path[256];
static uintptr_t libgcc_start, libgcc_end;

static void begin_stacks(const char *path, int fork)
{
	char name[PATH_MAX + 80];
	struct stacks *new;
	long fd;

	append(append(name, path), ".stacks");
	fd = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0 || syscall(SYS_ftruncate, fd, FILE_SIZE) < 0)
		die("cannot create the file of stacks");
	new = mmap(stacks, FILE_SIZE, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_NORESERVE | (fork ? MAP_FIXED : 0), fd, 0);
	if (new == MAP_FAILED)
		die("cannot map the file of stacks");
	madvise(new, FILE_SIZE, MADV_DONTDUMP);
	syscall(SYS_close, fd);
	if (syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", own_path, sizeof(own_path) - 1) < 0)
		own_path[0] = 0;
#ifndef STATIC
	{
		struct dl_find_object libgcc;

		if (_dl_find_object((void *)&_Unwind_Backtrace, &libgcc))
			die("libgcc is in no object");
		libgcc_start = (uintptr_t)libgcc.dlfo_map_start;
		libgcc_end = (uintptr_t)libgcc.dlfo_map_end;
	}
#endif
	new->used = sizeof(*new);
	new->magic = STACKS_MAGIC;
	stacks = new;
}

// ---- modules ----

static uint32_t name_module(enum module_kind kind, const char *path, const uint8_t *id,
			    uint32_t size)
{
	uint32_t n = atomic_load(&stacks->modules);

	if (size > sizeof(stacks->module[0].build_id))
		size = 0;
	for (uint32_t i = 0; i < n && i < MODULES; i++) {
		struct module *module = &stacks->module[i];

		if (atomic_load(&module->kind) == kind && module->build_id_size == size &&
		    !memcmp(module->build_id, id, size) &&
		    !strncmp(module->path, path, sizeof(module->path) - 1))
			return i + 1;
	}
	n = atomic_fetch_add(&stacks->modules, 1);
	if (n >= MODULES) {
		add(&stacks->full, 1);
		return 0;
	}
	strncpy(stacks->module[n].path, path, sizeof(stacks->module[n].path) - 1);
	stacks->module[n].build_id_size = size;
	memcpy(stacks->module[n].build_id, id, size);
	atomic_store(&stacks->module[n].kind, kind);
	return n + 1;
}

// The build-id of an object, whose ELF header is at `start`.
static const uint8_t *build_id(uintptr_t start, uintptr_t bias, uint32_t *size)
{
#ifdef STATIC
	(void)start;
	// Where a static program's map begins, glibc does not know.
	const ElfW(Phdr) *headers = (const void *)getauxval(AT_PHDR);
	int count = getauxval(AT_PHNUM);
#else
	const ElfW(Ehdr) *elf = (const void *)start;
	const ElfW(Phdr) *headers = (const void *)(start + elf->e_phoff);
	int count = elf->e_phnum;
#endif

	for (int n = 0; n < count; n++) {
		uintptr_t at = bias + headers[n].p_vaddr, end = at + headers[n].p_memsz;

		if (headers[n].p_type != PT_NOTE)
			continue;
		while (at + sizeof(ElfW(Nhdr)) < end) {
			const ElfW(Nhdr) *note = (const void *)at;
			const char *name = (const char *)(note + 1);
			const uint8_t *text = (const uint8_t *)name + ((note->n_namesz + 3) & ~3U);

			if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 &&
			    !memcmp(name, "GNU", 4)) {
				*size = note->n_descsz;
				return text;
			}
			at = (uintptr_t)text + ((note->n_descsz + 3) & ~3U);
		}
	}
	*size = 0;
	return (const uint8_t *)"";
}

// The number of an object's module, plus one. The object is loaded while a frame is in it, so its
// name can be read. A name at this address may have been another one before, so it is compared.
static uint32_t module_of(const struct dl_find_object *object)
{
	static _Atomic uint32_t last[256];
	const char *path = object->dlfo_link_map->l_name;
	_Atomic uint32_t *known = &last[(uintptr_t)object->dlfo_link_map >> 4 & 255];
	uint32_t n = atomic_load(known), size;
	const uint8_t *id;

	if (!*path)
		path = own_path;
	if (n && atomic_load(&stacks->module[n - 1].kind) == OBJECT &&
	    !strncmp(stacks->module[n - 1].path, path, sizeof(own_path) - 1))
		return n;
	id = build_id((uintptr_t)object->dlfo_map_start, object->dlfo_link_map->l_addr, &size);
	n = name_module(OBJECT, path, id, size);
	atomic_store(known, n);
	return n;
}

static uint64_t hex(const char **text)
{
	uint64_t n = 0;

	for (;; (*text)++) {
		char c = **text;

		if (c >= '0' && c <= '9')
			n = n * 16 + c - '0';
		else if (c >= 'a' && c <= 'f')
			n = n * 16 + c - 'a' + 10;
		else
			return n;
	}
}

// What frame_in_maps() returns for the trampoline of return probes.
#define TRAMPOLINE (~0ULL)

// A frame in code that no object has: a file that was mapped by hand, or no file.
static uint64_t frame_in_maps(uintptr_t ip)
{
	char line[512];
	size_t length = 0;
	char c;
	uint64_t frame = ip;
	long fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC);

	while (fd >= 0 && syscall(SYS_read, fd, &c, 1) == 1) {
		const char *at = line;
		uint64_t start, end, offset;

		if (c != '\n') {
			if (length < sizeof(line) - 1)
				line[length++] = c;
			continue;
		}
		line[length] = 0;
		length = 0;
		start = hex(&at);
		at++;
		end = hex(&at);
		at += 6; // " r-xp "
		offset = hex(&at);
		if (ip < start || ip >= end)
			continue;
		if (strstr(at, "[uprobes]"))
			frame = TRAMPOLINE;
		if (strstr(at, "[vdso]")) {
			uint64_t module = name_module(OBJECT, "[vdso]", (const uint8_t *)"", 0);

			frame = module << MODULE_SHIFT | (ip - start);
		}
		at = strchr(at, '/');
		if (at) {
			uint64_t module = name_module(MAPPED, at, (const uint8_t *)"", 0);

			frame = module << MODULE_SHIFT | (ip - start + offset);
		}
		break;
	}
	if (fd >= 0)
		syscall(SYS_close, fd);
	return frame;
}

static uint64_t frame_of(uintptr_t ip)
{
	struct dl_find_object object;

	if (_dl_find_object((void *)ip, &object))
		return frame_in_maps(ip);
	return (uint64_t)module_of(&object) << MODULE_SHIFT | (ip - object.dlfo_link_map->l_addr);
}

// ---- walks ----

struct walk {
	uint64_t hash;
	uintptr_t cfa;
	uint32_t frames;
	enum end end;
	int outside; // of this library
	uint64_t frame[MOST_FRAMES];
};

// Walks in progress have their memory here, because a thread's stack may be small. A walk that a
// siglongjmp left keeps its place for ever.
#define PLACES 64
static struct walk place[PLACES];
static _Atomic int taken[PLACES];

static struct walk *begin_walk(int *n)
{
	void *p;

	for (*n = 0; *n < PLACES; ++*n) {
		int free_place = 0;

		if (atomic_compare_exchange_strong(&taken[*n], &free_place, 1))
			return &place[*n];
	}
	p = mmap(NULL, sizeof(struct walk), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		 0);
	if (p == MAP_FAILED)
		die("cannot map memory for a walk");
	return p;
}

static void end_walk(struct walk *walk, int n)
{
	if (n < PLACES)
		atomic_store(&taken[n], 0);
	else
		munmap(walk, sizeof(*walk));
}

// libgcc calls this for each frame. In the last call the address is 0 if the frame before said that
// it has no caller. Otherwise libgcc found no rules for the last address.
static _Unwind_Reason_Code at_frame(struct _Unwind_Context *context, void *data)
{
	struct walk *walk = data;
	int exact = 0;
	uintptr_t ip = _Unwind_GetIPInfo(context, &exact);
	uint64_t frame;

	// At the first frame outside, the stack pointer is what it was before the interposed
	// function's call.
	walk->outside |= _Unwind_GetCFA(context) == walk->cfa;
	if (!walk->outside)
		return _URC_NO_REASON;
	if (!ip) {
		walk->end = COMPLETE;
		return _URC_NO_REASON;
	}
	if (walk->frames == MOST_FRAMES) {
		walk->end = TOO_DEEP;
		return _URC_NORMAL_STOP;
	}
	frame = frame_of(ip);
	if (frame == TRAMPOLINE) {
		walk->end = PROBED;
		return _URC_NORMAL_STOP;
	}
	frame |= exact ? EXACT : 0;
	walk->frame[walk->frames++] = frame;
	walk->hash = (walk->hash ^ frame) * 0x9e3779b97f4a7c15ULL;
	walk->hash ^= walk->hash >> 29;
	return _URC_NO_REASON;
}

static struct stack *stack_at(uint32_t place)
{
	return (void *)((char *)stacks + (uint64_t)place * 8);
}

// Finds the walk's stack in the file, or puts it there. Returns its place, or 0 if the file is
// full.
static uint32_t find(const struct walk *walk)
{
	size_t frames = walk->frames * sizeof(walk->frame[0]);
	size_t size = sizeof(struct stack) + frames;
	uint32_t new = 0;

	for (uint32_t i = 0; i < SLOTS; i++) {
		_Atomic uint32_t *slot = &stacks->slot[(walk->hash + i) % SLOTS];
		uint32_t found = atomic_load(slot);
		const struct stack *stack;

		if (!found) {
			uint64_t at = new ? 0 : atomic_fetch_add(&stacks->used, size);

			if (at + size > FILE_SIZE)
				return 0;
			if (!new) {
				struct stack *fresh = stack_at(new = at / 8);

				fresh->hash = walk->hash;
				fresh->end = walk->end;
				fresh->frames = walk->frames;
				memcpy(fresh->frame, walk->frame, frames);
			}
			if (atomic_compare_exchange_strong(slot, &found, new))
				return new;
		}
		stack = stack_at(found);
		if (stack->hash == walk->hash && stack->end == walk->end &&
		    stack->frames == walk->frames && !memcmp(stack->frame, walk->frame, frames))
			return found;
	}
	return 0;
}

// Whether libgcc can walk. In a static program it cannot until the program's tables are registered,
// and at its first walk it sorts them, with a lock held and with memory from malloc. The object of
// this file stands before the program's own in the command that links, so that this constructor is
// the first one after the registration.
#ifdef STATIC
static int can_walk;

static _Unwind_Reason_Code ignore(struct _Unwind_Context *context, void *data)
{
	(void)context, (void)data;
	return _URC_NO_REASON;
}

__attribute__((constructor)) static void walk_first(void)
{
	_Unwind_Backtrace(ignore, NULL);
	can_walk = 1;
}
#else
static const int can_walk = 1;
#endif

static uint32_t stack_of(struct caller caller, size_t size)
{
	int saved = errno, n;
	struct walk *walk;
	uint32_t found;

	if (caller.return_to - libgcc_start < libgcc_end - libgcc_start || !can_walk) {
		add(&stacks->unwalked_blocks, 1);
		add(&stacks->unwalked_bytes, size);
		errno = saved;
		return 0;
	}
	walk = begin_walk(&n);
	walk->hash = 1;
	walk->cfa = caller.cfa;
	walk->frames = 0;
	walk->outside = 0;
	walk->end = NO_RULES;
	if ((_Unwind_Backtrace(at_frame, walk) != _URC_END_OF_STACK && walk->end == NO_RULES) ||
	    !walk->outside)
		walk->end = BROKEN;
	found = find(walk);
	end_walk(walk, n);
	if (found) {
		add(&stack_at(found)->blocks, 1);
		add(&stack_at(found)->bytes, size);
	} else {
		add(&stacks->full, 1);
	}
	errno = saved;
	return found;
}

static void stack_lives(uint32_t stack, int64_t blocks, int64_t bytes)
{
	if (!stack)
		return;
	add(&stack_at(stack)->leaked_blocks, blocks);
	add(&stack_at(stack)->leaked_bytes, bytes);
}
