/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Walks up a thread's stack by the rules that compilers write for exceptions and debuggers. User
 * space puts a file's rules into `rows` when it examines the file (src/stacks/). So a walk needs
 * neither frame pointers nor a copy of the stack.
 */
#ifndef MEMLEAK_UNWIND_H
#define MEMLEAK_UNWIND_H

#include "core.h"
#include "frame.bpf.h"
#include "inode.bpf.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "survey.bpf.h"

#ifndef OLDER_KERNELS

/* What a signal handler's frame has of the interrupted code. */
#if defined(__TARGET_ARCH_x86)
/* struct rt_sigframe without its return address: ucontext, with uc_mcontext.gregs at 40. */
#define SIGNAL_FRAME_POINTER (40 + 10 * 8)
#define SIGNAL_THIRD (40 + 11 * 8)
#define SIGNAL_STACK_POINTER (40 + 15 * 8)
#define SIGNAL_IP (40 + 16 * 8)
/* mov $15, %rax; syscall */
#define SIGRETURN_LOW 0x0f0000000fc0c748ULL
#define SIGRETURN_HIGH 0x05
#else
/* siginfo, and ucontext with uc_mcontext.regs at 184. */
#define SIGNAL_FRAME_POINTER (128 + 184 + 29 * 8)
#define SIGNAL_LINK (128 + 184 + 30 * 8)
#define SIGNAL_STACK_POINTER (128 + 184 + 31 * 8)
#define SIGNAL_IP (128 + 184 + 32 * 8)
#endif

/* The stack is read in pieces of this size, because a read costs as much as a walk of 20 frames. */
enum { WINDOW_BYTES = 4096, WINDOW_WORDS = WINDOW_BYTES / 8 };

/* Words that a walk remembers to have read: a power of two. */
enum { MAX_READS = 128 };

/* What a walk depends on, beside the mappings. The same again leads to the same stack. */
struct walk_inputs {
	__u64 space, ip, sp;
	__u64 frame_pointer, third;
	__u32 uses;	     /* which of these two registers (enum own_registers) */
	__u32 is_odd;	     /* it depends on more than all this */
	__u32 reads;	     /* of the stack */
	__u32 at[MAX_READS]; /* the distances of the words read from sp */
	__u64 words[MAX_READS];
};

/* Registers that still have the values that they had at the start of a walk. */
enum own_registers { OWN_FRAME_POINTER = 1, OWN_THIRD = 2 };

/* What is mapped at an address. */
struct mapped {
	struct arrival arrival;
	__u64 address;
	__u64 page; /* the offset in the file of the address's page */
	__u32 is_file;
	__u32 is_code;
	__s32 error; /* 0, or why nothing is known */
	__u32 pad;
};

/* A walk up a thread's stack. It is too large for the program's own stack. */
struct stack_walk {
	__u64 owner; /* the ids of the task that walks; 0: none */
	__u64 heap;
	__u64 space; /* stands for the mappings of the process as they are now */
	__u64 trampoline;
	__u64 ip, sp;
	/* A register's value, or where it was last saved: it is read only if it is needed. */
	__u64 frame_pointer, frame_pointer_at;
	__u64 third, third_at;
	__u64 link;	 /* arm64: the register with the return address */
	__u64 top;	 /* where the stack ended in the last complete walk */
	__u64 window;	 /* the address of the first of `words` */
	__u32 in_window; /* words */
	__u32 is_exact;	 /* ip is not behind a call: a signal came there */
	__u32 is_third_lost;
	__u32 is_unreadable;
	__u32 own; /* enum own_registers */
	__u32 pad;
	struct mapped mapped;
	struct walk_inputs inputs;
	struct stack_record record;
	__u64 words[WINDOW_WORDS];
};

/*
 * Room for walks, 8 kB each. A task takes one for each walk. One for each CPU would do if programs
 * at probes could not be preempted. User space sets max_entries.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct stack_walk);
} stack_walks SEC(".maps");

struct row_segment {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SEGMENT_ROWS);
	__type(key, __u32);
	__type(value, __u64);
};

/* The rows of all files, one file after the other: the first of them. */
struct row_segment first_rows SEC(".maps");

/*
 * The rows behind these. User space adds maps as they are needed. It waits for a grace period each
 * time, so most programs should not need one.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, ROW_SEGMENTS);
	__type(key, __u32);
	__array(values, struct row_segment);
} rows SEC(".maps");

/* Files have the same few hundred rules. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_RULES);
	__type(key, __u32);
	__type(value, __u64);
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_MODULES);
	__type(key, __u32);
	__type(value, struct module);
} modules SEC(".maps");

/*
 * Caches without locks. The words of an entry are written one after the other. `check` is the key,
 * combined with the other words. So an entry that is only half written has no key at all.
 */
struct cached {
	__u64 check;
	__u64 value;
};

enum { FRAME_CACHE_BITS = 14, PAGE_CACHE_BITS = 14, RULE_CACHE_BITS = 16 };

/* Which code a page of an address space is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << PAGE_CACHE_BITS);
	__type(key, __u32);
	__type(value, struct cached);
} page_cache SEC(".maps");

/*
 * The same, whatever has changed since. A table of its own: where the mappings change often, the
 * entries of the other one are soon replaced.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << PAGE_CACHE_BITS);
	__type(key, __u32);
	__type(value, struct cached);
} last_pages SEC(".maps");

/* What is known of an address in an address space, so that mostly one look-up does for a frame. */
struct known_frame {
	__u64 check;
	__u64 place;
	__u64 rule;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << FRAME_CACHE_BITS);
	__type(key, __u32);
	__type(value, struct known_frame);
} frame_cache SEC(".maps");

/* The rules for places in files. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << RULE_CACHE_BITS);
	__type(key, __u32);
	__type(value, struct cached);
} rule_cache SEC(".maps");

#define GOLDEN_RATIO 0x9e3779b97f4a7c15ULL

static __always_inline __u64 mix(__u64 hash, __u64 value)
{
	hash = (hash ^ value) * GOLDEN_RATIO;
	return hash ^ hash >> 29;
}

/* What an address is: a place in a file, as in a frame, or one of these. */
enum { PLACE_NOT_CODE, PLACE_UNKNOWN, PLACE_BUSY, PLACE_KINDS };

enum { PAGE_BYTES = 1 << CODE_PAGE_BITS };

static long look_at_mapping(struct task_struct *task, struct vm_area_struct *vma,
			    struct stack_walk **context)
{
	struct mapped *mapped = &(*context)->mapped;
	struct file *file = BPF_CORE_READ(vma, vm_file);
	__u64 start = BPF_CORE_READ(vma, vm_start);

	mapped->is_code = (BPF_CORE_READ(vma, vm_flags) & VM_EXEC) != 0;
	mapped->arrival.start = start;
	mapped->arrival.end = BPF_CORE_READ(vma, vm_end);
	mapped->page = (mapped->address & -(__u64)PAGE_BYTES) - start;
	if (file) {
		mapped->is_file = 1;
		mapped->page += BPF_CORE_READ(vma, vm_pgoff) << CODE_PAGE_BITS;
		identify_inode(BPF_CORE_READ(file, f_inode), &mapped->arrival);
	}
	return 0;
}

/* How often the kernel is asked for a mapping: some 0.2 ms. */
enum { MAPPING_TRIES = 4096 };

static long try_mapping(__u32 index, struct stack_walk **context)
{
	struct stack_walk *walk = *context;

	walk->mapped.error = bpf_find_vma(bpf_get_current_task_btf(), walk->mapped.address,
					  look_at_mapping, &walk, 0);
	return walk->mapped.error != -EBUSY;
}

static __always_inline __u32 page_index(__u64 key)
{
	return key * GOLDEN_RATIO >> (64 - PAGE_CACHE_BITS);
}

static __always_inline void cache(struct cached *entry, __u64 key, __u64 value)
{
	if (!entry)
		return;
	entry->check = key ^ value;
	barrier();
	entry->value = value;
}

/* What a page of code is, or one of the kinds, at an address in it. */
static __always_inline __u64 place_in(__u64 page, __u64 address)
{
	return page < PLACE_KINDS ? page : page | (address & (PAGE_BYTES - 1));
}

/* A search among the mappings of a process as they were when they were last looked up. */
struct range_search {
	struct layout *layout;
	__u64 address;
	__u64 place;
};

static long look_at_range(__u32 index, struct range_search *search)
{
	struct layout *layout = search->layout;
	__u64 address = search->address;
	struct code_range *range;
	struct file_state *state;
	struct file_id file;

	if (index >= MAX_CODE_RANGES || index >= layout->count)
		return 1;
	range = &layout->ranges[index];
	if (address < range->start || address >= range->end)
		return 0;
	file = range->file;
	state = bpf_map_lookup_elem(&files, &file);
	search->place = PLACE_UNKNOWN;
	if (state && state->module)
		search->place = (__u64)state->module << FRAME_MODULE |
				(range->offset + (address - range->start));
	return 1;
}

/* What an address was when the process's mappings were last looked up. */
SUBPROGRAM long surveyed_place(struct stack_walk *walk, __u64 address)
{
	struct range_search search = {.address = address, .place = PLACE_BUSY};
	__u64 heap;

	if (!stacks || !walk)
		return PLACE_BUSY;
	heap = walk->heap;
	search.layout = bpf_map_lookup_elem(&layouts, &heap);
	if (!search.layout)
		return PLACE_BUSY;
	bpf_loop(MAX_CODE_RANGES, look_at_range, &search, 0);
	return search.place;
}

/*
 * Finds out what an address is, and puts the answer into the cache.
 *
 * While another thread changes the mappings, the kernel does not tell what they are. Then the
 * answer is what was last known of the page, if the process has as many pages of code as it had
 * then. It is wrong only if code was unmapped, and other code of the same size mapped in its place,
 * since then. If nothing is known of the page, the answer is what a dynamic loader has mapped
 * there. Otherwise the kernel is asked again for a while. The other thread may have been preempted,
 * so this does not always help.
 */
SUBPROGRAM long find_place(struct stack_walk *walk, __u64 address)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 page = address >> CODE_PAGE_BITS, place = PLACE_UNKNOWN, key, last, known;
	struct mapped *mapped;
	struct file_state *state;
	struct cached *entry;
	__u32 index;

	if (!stacks || !walk)
		return PLACE_NOT_CODE;
	mapped = &walk->mapped;
	mapped->address = address;
	mapped->is_file = mapped->is_code = 0;
	last = mix(mix(stack_seed, walk->heap), BPF_CORE_READ(task, mm, exec_vm)) ^ page;
	index = page_index(last);
	entry = bpf_map_lookup_elem(&last_pages, &index);
	if (!entry)
		return PLACE_NOT_CODE;
	try_mapping(0, &walk);
	if (mapped->error == -EBUSY) {
		known = entry->value;
		if ((entry->check ^ known) == last)
			return place_in(known, address);
		known = surveyed_place(walk, address);
		if (known != PLACE_BUSY)
			return known;
		bpf_loop(MAPPING_TRIES, try_mapping, &walk, 0);
		if (mapped->error == -EBUSY)
			return PLACE_BUSY;
	}
	if (mapped->error || !mapped->is_code)
		return PLACE_NOT_CODE;
	if (mapped->is_file && mapped->page >> FRAME_MODULE == 0) {
		state = known_file(&mapped->arrival);
		if (!state) {
			/* It was mapped by other means than a dynamic loader's. */
			mapped->arrival.pid = proc_pid_of(task);
			mapped->arrival.heap = walk->heap;
			send_arrival(&mapped->arrival);
			return PLACE_UNKNOWN;
		}
		if (state->asked)
			return PLACE_UNKNOWN;
		if (state->module)
			place = (__u64)state->module << FRAME_MODULE | mapped->page;
	}
	cache(entry, last, place);
	key = walk->space ^ page;
	index = page_index(key);
	cache(bpf_map_lookup_elem(&page_cache, &index), key, place);
	return place_in(place, address);
}

static __always_inline __u64 place_of(struct stack_walk *walk, __u64 address)
{
	__u64 key = walk->space ^ address >> CODE_PAGE_BITS, page;
	__u32 index = page_index(key);
	struct cached *entry = bpf_map_lookup_elem(&page_cache, &index);

	if (!entry)
		return PLACE_NOT_CODE;
	page = entry->value;
	return (entry->check ^ page) == key ? place_in(page, address) : find_place(walk, address);
}

static __always_inline __u64 row_at(__u32 at)
{
	__u32 segment = at / SEGMENT_ROWS - 1, index = at % SEGMENT_ROWS;
	void *map;
	__u64 *row;

	if (at < SEGMENT_ROWS) {
		row = bpf_map_lookup_elem(&first_rows, &index);
	} else {
		map = bpf_map_lookup_elem(&rows, &segment);
		row = map ? bpf_map_lookup_elem(map, &index) : 0;
	}
	return row ? *row : ~0ULL;
}

/* A search for the last row of a file that is not behind an offset. */
struct row_search {
	__u32 low, high; /* it is before `high`, and not before the one before `low` */
	__u64 offset;
	__u64 best;
};

/* The rows of all files have numbers of so many bits. */
enum { ROW_STEPS = 26 };

static long halve_rows(__u32 index, struct row_search *search)
{
	__u32 low = search->low, high = search->high, middle;
	__u64 row;

	if (low >= high)
		return 1;
	middle = low + (high - low) / 2;
	row = row_at(middle);
	if (row >> 32 <= search->offset) {
		search->best = row;
		search->low = middle + 1;
	} else {
		search->high = middle;
	}
	return 0;
}

/* Looks up the rule for a place, and puts it into the cache. */
SUBPROGRAM long find_rule(__u64 place)
{
	struct row_search search = {.offset = place & ((1ULL << FRAME_MODULE) - 1)};
	__u32 number = (place >> FRAME_MODULE) & (MAX_MODULES - 1), index;
	__u64 *rule, value = RULE_MISSING;
	struct module *module;

	if (!stacks)
		return RULE_MISSING;
	module = bpf_map_lookup_elem(&modules, &number);
	if (!module)
		return RULE_MISSING;
	if (!module->loaded)
		return RULE_PENDING;
	search.low = module->first;
	search.high = module->first + module->count;
	bpf_loop(ROW_STEPS, halve_rows, &search, 0);
	index = search.best;
	rule = search.low > module->first ? bpf_map_lookup_elem(&rules, &index) : 0;
	if (rule)
		value = *rule;
	index = place * GOLDEN_RATIO >> (64 - RULE_CACHE_BITS);
	cache(bpf_map_lookup_elem(&rule_cache, &index), place, value);
	return value;
}

static __always_inline __u64 rule_of(__u64 place)
{
	__u32 index = place * GOLDEN_RATIO >> (64 - RULE_CACHE_BITS);
	struct cached *entry = bpf_map_lookup_elem(&rule_cache, &index);
	__u64 value;

	if (!entry)
		return RULE_MISSING;
	value = entry->value;
	return (entry->check ^ value) == place ? value : find_rule(place);
}

/* Reads the part of the stack from an address on. Returns whether that succeeded. */
SUBPROGRAM int read_window(struct stack_walk *walk, __u64 address)
{
	__u64 length = WINDOW_BYTES;

	if (!stacks || !walk)
		return 0;
	/* Most stacks are short, and mostly this is the end of the last walk, too. */
	if (walk->top > address && walk->top - address < length)
		length = (walk->top - address + 7) & -8ULL;
	if (length > WINDOW_BYTES)
		length = WINDOW_BYTES;
	walk->in_window = 0;
	if (bpf_probe_read_user(walk->words, length, (void *)address)) {
		/* The next page may be none of the stack's. */
		length = PAGE_BYTES - (address & (PAGE_BYTES - 1));
		if (length > WINDOW_BYTES)
			return 0;
		if (bpf_probe_read_user(walk->words, length, (void *)address))
			return 0;
	}
	walk->window = address;
	walk->in_window = length / 8;
	return 1;
}

/* A word of the stack, or 0 where it cannot be read. */
static __always_inline __u64 word_at(struct stack_walk *walk, __u64 address)
{
	__u64 at = (address - walk->window) >> 3;

	if (at >= walk->in_window || (address - walk->window) & 7) {
		if (!read_window(walk, address)) {
			walk->is_unreadable = 1;
			return 0;
		}
		at = 0;
	}
	return walk->words[at & (WINDOW_WORDS - 1)];
}

/* The same, and remembers it. */
static __always_inline __u64 stack_word(struct stack_walk *walk, __u64 address)
{
	__u64 word = word_at(walk, address), distance = address - walk->inputs.sp;
	__u32 number = walk->inputs.reads & (MAX_READS - 1);

	/* On another stack, or below sp. */
	if (distance >> 32)
		walk->inputs.is_odd = 1;
	walk->inputs.words[number] = word;
	walk->inputs.at[number] = distance;
	walk->inputs.reads++;
	return word;
}

static __always_inline __u64 frame_pointer_of(struct stack_walk *walk)
{
	if (walk->frame_pointer_at) {
		walk->frame_pointer = stack_word(walk, walk->frame_pointer_at);
		walk->frame_pointer_at = 0;
		walk->own &= ~OWN_FRAME_POINTER;
	}
	walk->inputs.uses |= walk->own & OWN_FRAME_POINTER;
	return walk->frame_pointer;
}

static __always_inline __u64 third_of(struct stack_walk *walk)
{
	if (walk->third_at) {
		walk->third = stack_word(walk, walk->third_at);
		walk->third_at = 0;
		walk->own &= ~OWN_THIRD;
	}
	walk->inputs.uses |= walk->own & OWN_THIRD;
	return walk->third;
}

/* A search among the calls whose return addresses the kernel has replaced. */
struct call_search {
	struct return_instance *call;
	__u64 stack;
	__u64 address;
};

/* Calls that are looked at. */
enum { MAX_REPLACED = 64 };

static long look_at_call(__u32 index, struct call_search *search)
{
	struct return_instance *call = search->call;

	if (!call)
		return 1;
	if (BPF_CORE_READ(call, stack) == search->stack) {
		search->address = BPF_CORE_READ(call, orig_ret_vaddr);
		return 1;
	}
	search->call = BPF_CORE_READ(call, next);
	return 0;
}

/* The return address that the kernel has replaced in a word of the stack; 0 if it is not known. */
SUBPROGRAM long replaced_address(__u64 address)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct call_search search = {.stack = address};

	if (!stacks)
		return 0;
	search.call = BPF_CORE_READ(task, utask, return_instances);
	bpf_loop(MAX_REPLACED, look_at_call, &search, 0);
	return search.address;
}

/* Whether the code at an address ends a signal handler. Some C libraries have no rule for it. */
static __always_inline bool is_sigreturn(__u64 address)
{
#if defined(__TARGET_ARCH_x86)
	__u8 high = 0;

	if (user_word(address) != SIGRETURN_LOW)
		return false;
	bpf_probe_read_user(&high, 1, (void *)(address + 8));
	return high == SIGRETURN_HIGH;
#else
	/* mov x8, #139; svc #0 */
	return user_word(address) == 0xd4000001d2801168ULL;
#endif
}

/*
 * Continues in the code that a signal has interrupted. The signal may have its own stack. Returns 1
 * at the end.
 */
SUBPROGRAM int leave_signal_frame(struct stack_walk *walk)
{
	__u64 sp;

	if (!stacks || !walk)
		return 1;
	sp = walk->sp;

	walk->own = 0;
	walk->frame_pointer = stack_word(walk, sp + SIGNAL_FRAME_POINTER);
	walk->frame_pointer_at = 0;
#if defined(__TARGET_ARCH_x86)
	walk->third = stack_word(walk, sp + SIGNAL_THIRD);
	walk->third_at = 0;
	walk->is_third_lost = 0;
#else
	walk->link = stack_word(walk, sp + SIGNAL_LINK);
#endif
	walk->ip = stack_word(walk, sp + SIGNAL_IP);
	walk->sp = stack_word(walk, sp + SIGNAL_STACK_POINTER);
	walk->is_exact = 1;
	if (!walk->is_unreadable)
		return 0;
	walk->record.end = WALK_UNREADABLE;
	return 1;
}

static __always_inline __s64 signed_bits(__u64 value, __u32 from, __u32 count)
{
	return (__s64)(value << (64 - from - count)) >> (64 - count);
}

static __always_inline __u32 byte_of(__u64 rule, __u32 from)
{
	return (rule >> from) & 0xff;
}

/* Goes on to where the return address in a word of the stack leads. Returns 1 at the end. */
static __always_inline int return_to(struct stack_walk *walk, __u64 address_at, __u64 sp)
{
	__u64 address = stack_word(walk, address_at);

	if (walk->is_unreadable) {
		walk->record.end = WALK_UNREADABLE;
		return 1;
	}
	if (address == walk->trampoline && address) {
		walk->inputs.is_odd = 1;
		address = replaced_address(address_at);
		if (!address) {
			walk->record.end = WALK_NO_CALL;
			return 1;
		}
	}
#if !defined(__TARGET_ARCH_x86)
	address &= ADDRESS_BITS;
#endif
	if (!address) {
		walk->record.end = WALK_COMPLETE;
		return 1;
	}
	walk->ip = address;
	walk->sp = sp;
	walk->is_exact = 0;
	return 0;
}

/* Goes on by the frame pointer, where no rule says more. Returns 1 at the end. */
SUBPROGRAM int guess(struct stack_walk *walk)
{
	__u64 frame;

	if (!stacks || !walk)
		return 1;
	frame = frame_pointer_of(walk);
	walk->record.end = WALK_NO_RULE;
	if (frame < walk->sp || frame & 7 || walk->is_unreadable)
		return 1;
	walk->frame_pointer_at = frame;
	walk->is_third_lost = 1;
	walk->record.guessed++;
	return return_to(walk, frame + 8, frame + 16);
}

/* Applies a rule that reads words at fixed distances. Returns 1 at the end. */
static __always_inline int apply(struct stack_walk *walk, __u64 rule)
{
	__u32 base = (rule >> RULE_BASE) & 3, below;
	__s64 distance = signed_bits(rule, RULE_DISTANCE, 24) * 8;
	__u64 end;

	if (base == BASE_STACK_POINTER) {
		end = walk->sp;
	} else if (base == BASE_FRAME_POINTER) {
		end = frame_pointer_of(walk);
	} else if (!walk->is_third_lost) {
		end = third_of(walk);
	} else {
		walk->record.end = WALK_ODD_RULE;
		return 1;
	}
	end += distance;
	if (rule & 1 << RULE_INDIRECT)
		end = stack_word(walk, end) + byte_of(rule, RULE_PLUS) * 8;
	/* A frame's end is above its stack pointer. Anything else would be no frame. */
	if (end <= walk->sp) {
		walk->record.end = walk->is_unreadable ? WALK_UNREADABLE : WALK_ODD_RULE;
		return 1;
	}
	below = byte_of(rule, RULE_FRAME);
	if (rule & 1 << RULE_AT_FRAME)
		walk->frame_pointer_at =
		    frame_pointer_of(walk) + signed_bits(rule, RULE_FRAME, 8) * 8;
	else if (below)
		walk->frame_pointer_at = end - below * 8;
	below = byte_of(rule, RULE_THIRD);
	if (below == RULE_LOST) {
		walk->is_third_lost = 1;
	} else if (below) {
		walk->third_at = end - below * 8;
		walk->is_third_lost = 0;
	}
	below = byte_of(rule, RULE_RETURN);
#if !defined(__TARGET_ARCH_x86)
	if (!below) {
		walk->ip = walk->link & ADDRESS_BITS;
		walk->sp = end;
		walk->record.end = WALK_ODD_RULE;
		if (!walk->is_exact)
			return 1;
		walk->is_exact = 0;
		return 0;
	}
#endif
	return return_to(walk, end - below * 8, end);
}

/* Goes on from an entry of a procedure linkage table. Returns 1 at the end. */
SUBPROGRAM int leave_linkage(struct stack_walk *walk, __u64 rule)
{
	__u64 end;

	if (!stacks || !walk)
		return 1;
	end = walk->sp + 8;
	if ((walk->ip & 15) >= byte_of(rule, RULE_PLUS))
		end += 8;
	return return_to(walk, end - 8, end);
}

/*
 * Makes one of two words. Addresses and places resemble each other, so they are not combined as
 * they are: a half written entry could have the key of another one.
 */
static __always_inline __u64 combined(__u64 place, __u64 rule)
{
	return place * GOLDEN_RATIO ^ rule * 0xd1b54a32d192ed03ULL;
}

/* Records a frame, and goes on to its caller. Returns 1 at the end. */
static long walk_one(__u64 index, struct stack_walk **context)
{
	struct stack_walk *walk = *context;
	__u64 address = walk->ip - !walk->is_exact, place, frame, rule;
	__u64 key = walk->space ^ address;
	__u32 slot = key * GOLDEN_RATIO >> (64 - FRAME_CACHE_BITS);
	struct known_frame *known = bpf_map_lookup_elem(&frame_cache, &slot);

	if (!known)
		return 1;
	place = known->place;
	rule = known->rule;
	if ((known->check ^ combined(place, rule)) == key) {
		frame = place + !walk->is_exact;
		goto found;
	}
	place = place_of(walk, address);
	if (place == PLACE_NOT_CODE) {
		walk->record.end = walk->record.guessed ? WALK_NO_RULE : WALK_NO_CODE;
		return 1;
	}
	if (place == PLACE_BUSY) {
		walk->record.end = WALK_BUSY;
		return 1;
	}
	if (place == PLACE_UNKNOWN) {
		frame = 1ULL << FRAME_ADDRESS | walk->ip;
		rule = RULE_MISSING;
	} else {
		frame = place + !walk->is_exact;
		rule = rule_of(place);
		if (rule != RULE_PENDING) {
			known->check = key ^ combined(place, rule);
			barrier();
			known->place = place;
			known->rule = rule;
		}
	}
found:
	if (walk->is_exact)
		frame |= 1ULL << FRAME_EXACT;
	walk->record.frames[index & (MAX_FRAMES - 1)] = frame;
	walk->record.hash = mix(walk->record.hash, frame);
	walk->record.depth = index + 1;
	switch (rule & 7) {
	case RULE_PLAIN:
		return apply(walk, rule) != 0;
	case RULE_OUTERMOST:
		walk->record.end = WALK_COMPLETE;
		return 1;
	case RULE_SIGNAL:
		return leave_signal_frame(walk) != 0;
	case RULE_LINKAGE:
		return leave_linkage(walk, rule) != 0;
	case RULE_MISSING:
		walk->inputs.is_odd = 1;
		if (is_sigreturn(walk->ip))
			return leave_signal_frame(walk) != 0;
		return guess(walk) != 0;
	case RULE_PENDING:
		walk->record.end = WALK_PENDING;
		return 1;
	default:
		walk->record.end = WALK_ODD_RULE;
		return 1;
	}
}

/* Stands for the mappings that the current process has: another number when they have changed. */
static __always_inline __u64 version_of_mappings(struct task_struct *task)
{
	struct mm_struct___counted *counted;
	struct mm_struct___numbered *numbered;
	struct mm_struct *mm = task->mm;

	counted = (void *)mm;
	numbered = (void *)mm;
	if (bpf_core_field_exists(counted->mm_lock_seq.sequence))
		return BPF_CORE_READ(counted, mm_lock_seq.sequence);
	if (bpf_core_field_exists(numbered->mm_lock_seq))
		return BPF_CORE_READ(numbered, mm_lock_seq);
	/* Nearly as good: what is unmapped and mapped again in one size is missed. */
	return mix(BPF_CORE_READ(mm, total_vm),
		   mix(BPF_CORE_READ(mm, exec_vm), BPF_CORE_READ(mm, map_count)));
}

/* Places that are tried before there counts as no room for a walk. */
enum { WALK_TRIES = 16 };

/* Takes room for a walk; 0 if there is none. Mostly a task gets the same again. */
static __always_inline struct stack_walk *begin_walk(void)
{
	__u64 task = bpf_get_current_pid_tgid();
	__u32 first = task * GOLDEN_RATIO >> 32, index;
	struct stack_walk *walk;
	int i;

	for (i = 0; i < WALK_TRIES; i++) {
		index = (first + i) & walk_mask;
		walk = bpf_map_lookup_elem(&stack_walks, &index);
		if (!walk)
			return 0;
		if (!__sync_val_compare_and_swap(&walk->owner, 0, task))
			return walk;
	}
	return 0;
}

static __always_inline void end_walk(struct stack_walk *walk)
{
	__sync_lock_test_and_set(&walk->owner, 0);
}

/* Begins a walk at the function that has just returned, or that is at its `ret`. */
static __always_inline void start_walk(struct pt_regs *ctx, __u64 heap, struct stack_walk *walk,
				       int at_ret)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct walk_inputs *inputs = &walk->inputs;

	if (walk->heap != heap || !walk->trampoline) {
		walk->heap = heap;
		walk->trampoline = trampoline_of(task);
		walk->top = 0;
	}
	walk->space = mix(mix(stack_seed, heap), version_of_mappings(task));
	walk->in_window = 0;
	walk->is_exact = 0;
	walk->is_unreadable = 0;
	walk->ip = PT_REGS_IP(ctx);
	walk->sp = PT_REGS_SP(ctx);
	walk->frame_pointer_at = 0;
	walk->third_at = 0;
	inputs->uses = 0;
	inputs->is_odd = 0;
#if defined(__TARGET_ARCH_x86)
	walk->frame_pointer = ctx->bp;
	walk->third = ctx->bx;
	walk->own = OWN_FRAME_POINTER | OWN_THIRD;
	walk->is_third_lost = 0;
	if (at_ret) {
		walk->ip = word_at(walk, walk->sp);
		if (walk->ip == walk->trampoline)
			walk->ip = replaced_address(walk->sp);
		walk->sp += 8;
	}
#else
	walk->frame_pointer = ctx->regs[29];
	walk->own = OWN_FRAME_POINTER;
	walk->is_third_lost = 1;
	if (at_ret)
		walk->ip = ctx->regs[30] & ADDRESS_BITS;
#endif
	inputs->space = walk->space;
	inputs->ip = walk->ip;
	inputs->sp = walk->sp;
	inputs->frame_pointer = walk->frame_pointer;
	inputs->third = walk->third;
	inputs->reads = 0;
}

/* Walks up the stack. */
SUBPROGRAM int walk_stack(struct stack_walk *walk)
{
	if (!stacks || !walk)
		return 0;
	walk->record.hash = stack_seed;
	walk->record.depth = 0;
	walk->record.end = WALK_TOO_DEEP;
	walk->record.guessed = 0;
	bpf_loop(MAX_FRAMES, walk_one, &walk, 0);
	if (walk->record.end == WALK_COMPLETE)
		walk->top = walk->sp;
	walk->record.hash = mix(walk->record.hash, walk->record.end);
	return 1;
}

#endif

#endif
