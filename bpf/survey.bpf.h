/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Looks up the files that a process has mapped to execute. A new file is sent to user space, which
 * examines whether it is an allocator, and puts probes on it.
 */
#ifndef MEMLEAK_SURVEY_H
#define MEMLEAK_SURVEY_H

#include "core.h"
#include "heap_files.bpf.h"
#include "inode.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "pids.bpf.h"

#ifdef OLDER_KERNELS

/* On older kernels, user space looks up the files before. */
static __always_inline int survey_mappings(struct task_struct *task, struct heap *heap, bool waits)
{
	return 0;
}

#else

/*
 * Executable files that were examined, or are being examined. 40,000 distinct ones fit. The map
 * takes memory as it is used. A file that does not fit is sent to user space again and again.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 40000);
	__type(key, struct file_id);
	__type(value, struct file_state);
} files SEC(".maps");

/* Files on their way to user space. A process that starts brings some fifty, at the most. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} arrivals SEC(".maps");

/* kernel/bpf/task_iter.c (6.7) */
extern int bpf_iter_task_vma_new(struct bpf_iter_task_vma *it, struct task_struct *task,
				 __u64 addr) __ksym __weak;
extern struct vm_area_struct *bpf_iter_task_vma_next(struct bpf_iter_task_vma *it) __ksym __weak;
extern void bpf_iter_task_vma_destroy(struct bpf_iter_task_vma *it) __ksym __weak;

/* What is known of the file of `arrival`, as it is now; 0 if it is not known. */
static __always_inline struct file_state *known_file(struct arrival *arrival)
{
	struct file_id file = arrival->file;
	struct file_state *state = bpf_map_lookup_elem(&files, &file);

	if (!state || state->version.changed_sec != arrival->version.changed_sec ||
	    state->version.changed_nsec != arrival->version.changed_nsec)
		return 0;
	return state;
}

/* Sends a file to user space. Returns false if that is not possible. */
static __always_inline bool send_arrival(struct arrival *arrival)
{
	struct file_state asked = {.version = arrival->version, .asked = 1};
	struct file_id file = arrival->file;

	/* The question must be in the map before the answer can come. */
	if (bpf_map_update_elem(&files, &file, &asked, BPF_ANY))
		return false;
	if (!bpf_ringbuf_output(&arrivals, arrival, sizeof(*arrival), BPF_RB_FORCE_WAKEUP))
		return true;
	bpf_map_delete_elem(&files, &file);
	return false;
}

static __always_inline void apply_file_state(struct heap *heap, struct file_state *state,
					     bool program)
{
	if (state->index != NO_INDEX)
		add_file(heap, state->index);
	if (state->flags & FILE_UNEXAMINED)
		__sync_fetch_and_or(&heap->flags, HEAP_UNEXAMINED);
	/* For a program that is its own C library, this means that there is nothing to count. */
	if (program && state->flags & FILE_NO_SYMBOLS)
		__sync_fetch_and_or(&heap->flags, HEAP_NO_SYMBOLS);
	if (program && state->flags & FILE_32BIT)
		__sync_fetch_and_or(&heap->flags, HEAP_32BIT);
}

/*
 * Puts what is known of a mapped file into the heap. Returns 1 if the file is not known yet, and
 * the process waits for it. A process that does not wait is late.
 */
static __always_inline int must_wait_for(struct arrival *arrival, struct heap *heap, bool program,
					 bool waits)
{
	struct file_state *state;
	struct file_id file;

	state = known_file(arrival);
	if (state && !state->asked) {
		apply_file_state(heap, state, program);
		file = arrival->file;
		if (state->flags & FILE_FORGET)
			bpf_map_delete_elem(&files, &file);
		return 0;
	}
	if ((state || send_arrival(arrival)) && waits)
		return 1;
	__sync_fetch_and_or(&heap->flags, HEAP_LATE);
	return 0;
}

/* Executable mappings of a process that are remembered. */
enum { MAX_CODE_RANGES = 96 };

/* An executable mapping of a file. */
struct code_range {
	__u64 start, end;
	__u64 offset; /* in the file */
	struct file_id file;
};

/* What a process had mapped when its mappings were last looked up. */
struct layout {
	__u32 count;
	__u32 pad;
	struct code_range ranges[MAX_CODE_RANGES];
};

/*
 * Of the heaps that were surveyed last. It is needed only where several threads allocate for the
 * first time while others change the mappings. An entry takes 3.8 kB.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 512);
	__type(key, __u64);
	__type(value, struct layout);
} layouts SEC(".maps");

static const struct layout no_layout;

static __always_inline void begin_layout(__u64 heap)
{
	struct layout *layout = bpf_map_lookup_elem(&layouts, &heap);

	if (layout)
		layout->count = 0;
	else
		bpf_map_update_elem(&layouts, &heap, &no_layout, BPF_ANY);
}

SUBPROGRAM int note_code(__u64 heap, __u64 offset, struct arrival *arrival)
{
	struct code_range *range;
	struct layout *layout;
	__u32 at;

	/* Before 6.8 this is verified although nobody calls it, and the map is not there. */
	if (!stacks || !arrival)
		return 0;
	layout = bpf_map_lookup_elem(&layouts, &heap);
	if (!layout)
		return 0;
	at = layout->count;
	if (at >= MAX_CODE_RANGES)
		return 0;
	range = &layout->ranges[at];
	range->start = arrival->start;
	range->end = arrival->end;
	range->offset = offset;
	range->file = arrival->file;
	barrier();
	layout->count = at + 1;
	return 1;
}

/* A walk over the mappings of a process. */
struct survey {
	struct arrival arrival; /* of the mapping at hand */
	__u64 last;		/* address of the inode that was seen last */
	__u64 entry;		/* an address in the program */
	__u64 offset;		/* of the mapping at hand, in its file */
};

/*
 * Looks up the file of one executable mapping. Returns whether it is not known yet. It is a global
 * function, and so verified once, not at every turn of the loop that calls it. On 6.12 that would
 * be 44,000 instructions in each program. Such a function can take no struct file (before 6.9), so
 * it takes the address.
 */
SUBPROGRAM int survey_file(struct survey *survey, struct heap *heap, __u64 address, bool waits)
{
	struct file *file = (struct file *)address;
	struct arrival *arrival;
	struct inode *inode;

	if (!survey || !heap)
		return 0;
	arrival = &survey->arrival;
	inode = BPF_CORE_READ(file, f_inode);
	if ((__u64)inode == survey->last)
		return 0;
	survey->last = (__u64)inode;
	/* A device is not a program, and opening one may have effects. */
	if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFREG)
		return 0;
	identify_inode(inode, arrival);
	if (stacks)
		note_code(heap->id, survey->offset, arrival);
	return must_wait_for(
	    arrival, heap, arrival->start <= survey->entry && survey->entry < arrival->end, waits);
}

/*
 * Looks up all files that a process has mapped to execute. Returns how many are not known yet.
 * Those that user space had not been asked about have been sent to it. Returns -1 if the mappings
 * cannot be read at the moment.
 */
static __always_inline int survey_mappings(struct task_struct *task, struct heap *heap, bool waits)
{
	struct survey survey = {};
	struct bpf_iter_task_vma it;
	struct vm_area_struct *vma;
	struct file *file;
	int unknown = 0;

	if (!bpf_iter_task_vma_new)
		return 0;
	/* After the leader has exited, its own entries in /proc show no memory. */
	survey.arrival.pid = proc_pid_of(task);
	survey.arrival.heap = heap->id;
	survey.entry = BPF_CORE_READ(task, mm, start_code);
	if (stacks)
		begin_layout(heap->id);
	if (bpf_iter_task_vma_new(&it, task, 0))
		unknown = -1;
	while ((vma = bpf_iter_task_vma_next(&it))) {
		file = BPF_CORE_READ(vma, vm_file);
		if (!file || !(BPF_CORE_READ(vma, vm_flags) & VM_EXEC))
			continue;
		survey.arrival.start = BPF_CORE_READ(vma, vm_start);
		survey.arrival.end = BPF_CORE_READ(vma, vm_end);
		survey.offset = BPF_CORE_READ(vma, vm_pgoff) << CODE_PAGE_BITS;
		if (survey_file(&survey, heap, (__u64)file, waits))
			unknown++;
	}
	bpf_iter_task_vma_destroy(&it);
	return unknown;
}

/* The same for the current process. */
__noinline int survey_current(struct thread *thread)
{
	struct heap *heap;
	int unknown;

	if (!thread)
		return 0;
	heap = heap_by_id(thread->heap);
	if (!heap)
		return 0;
	unknown = survey_mappings(bpf_get_current_task_btf(), heap, true);
	note_all_files(thread, heap);
	return unknown;
}

#endif

#endif
