/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a copy of the C library has counted in a process (inside/inside.c). The process tells once
 * where it keeps its counters. They are read when its image ends: in the last task that leaves the
 * memory, while it has the memory still (since 6.16), or before an exec.
 */
#ifndef MEMLEAK_INSIDE_H
#define MEMLEAK_INSIDE_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/* More than a process can have. */
enum { INCREDIBLE_BITS = 47 };

/* What a process has not freed, in bytes, as far as it counts inside. It could have written any. */
static __always_inline __u64 unfreed_inside(const struct inside_sums *sums)
{
	const __u64 most = 1ULL << INCREDIBLE_BITS;
	__u64 live = sums->live > 0 ? sums->live : 0, unrecorded = sums->unrecorded_bytes;

	return live < most && unrecorded < most ? live + unrecorded : most;
}

#ifndef OLDER_KERNELS

static __always_inline void set_inside_flags(struct heap *heap, __u32 flags)
{
	__sync_fetch_and_or(&heap->inside_flags, flags);
}

/*
 * The process tells where it keeps its counters, and what it knows of them (enum state_flags). If
 * it has two copies of the library (dlmopen), only the first one is read.
 */
static __always_inline void announced(struct heap *heap, __u64 at, __u64 flags)
{
	if (!inside)
		return;
	if (__sync_val_compare_and_swap(&heap->inside_at, 0, at) || flags & LINES_NOT_WIPED)
		set_inside_flags(heap, INSIDE_UNREAD);
}

/* A child of fork has the same counters, which begin with zeros. It will tell of them itself. */
static __always_inline void inherit_inside(struct heap *child, struct heap *parent)
{
	child->inside_flags = parent->inside_flags & INSIDE_UNREAD;
}

/*
 * How many allocations the current thread has counted inside. If another thread shares its line, it
 * may have counted some, too.
 */
SUBPROGRAM __u64 inside_allocs(struct heap *heap)
{
	__u64 allocs = 0;
#if defined(__TARGET_ARCH_x86)
	__u64 lines, word = 0;

	if (!heap || !heap->inside_at)
		return 0;
	lines = heap->inside_at + __builtin_offsetof(struct memory, wiped) +
		__builtin_offsetof(struct wiped, lines);
	if (bpf_probe_read_user(&word, sizeof(word),
				(void *)(BPF_CORE_READ(current_task(), thread.fsbase) + 0x38)))
		return 0;
	/* A thread that has not counted yet has no line. */
	if (word - lines >= sizeof(((struct wiped *)0)->lines))
		return 0;
	bpf_probe_read_user(&allocs, sizeof(allocs), (void *)word);
#endif
	return allocs;
}

/* A call of an allocator with probes begins. */
static __always_inline __u64 begin_beside_inside(__u64 heap)
{
	return inside ? inside_allocs(heap_by_id(heap)) : 0;
}

/* It has returned. `allocs`: what `begin_beside_inside` said. */
static __always_inline void end_beside_inside(__u64 heap_id, __u64 allocs)
{
	struct heap *heap = inside ? heap_by_id(heap_id) : 0;

	if (heap && inside_allocs(heap) != allocs)
		set_inside_flags(heap, INSIDE_NESTED);
}

/* A reading of the lines. */
struct line_reading {
	__u64 at;     /* of the first */
	__u64 failed; /* whether one could not be read */
	struct inside_sums sums;
};

static long read_line(__u32 number, struct line_reading *reading)
{
	struct inside_sums *sums = &reading->sums;
	struct line line;

	if (bpf_probe_read_user(&line, sizeof(line),
				(void *)(reading->at + number * sizeof(line)))) {
		/* Not a count: the verifier would follow the loop as often as it can be run. */
		reading->failed = true;
		return 1;
	}
	sums->alloc_bytes += line.alloc_bytes;
	sums->alloc_count += line.allocs;
	sums->free_count += line.frees;
	sums->unknown_frees += line.unknown_frees;
	sums->failed_allocs += line.failed;
	sums->live += line.live;
	sums->in_flight += line.open;
	return 0;
}

/*
 * Reads the counters of the current process, and says whether that was possible. The process has
 * touched what is read before it told of it, so a page that cannot be read was taken away.
 */
static __noinline bool read_inside(__u64 at, struct line_reading *reading)
{
	const __u64 head = __builtin_offsetof(struct wiped, lines);
	struct {
		__u64 magic;
		__u32 started, flags, threads;
	} state;
	struct wiped_head wiped;

	if (!reading || bpf_probe_read_user(&state, sizeof(state), (void *)at) ||
	    state.magic != INSIDE_MAGIC || state.flags & (LINES_NOT_WIPED | CHUNKS_ODD))
		return false;
	at += __builtin_offsetof(struct memory, wiped);
	if (bpf_probe_read_user(&wiped, sizeof(wiped), (void *)at))
		return false;
	reading->sums.peak = wiped.peak;
	reading->sums.several = wiped.several;
	reading->sums.unrecorded = wiped.unrecorded;
	reading->sums.unrecorded_bytes = wiped.unrecorded_bytes;
	reading->sums.in_flight = wiped.crossed;
	reading->at = at + head;
	if (state.threads > OWN_LINES)
		state.threads = OWN_LINES;
	bpf_loop(state.flags & LINES_SHARED ? LINES : state.threads, read_line, reading, 0);
	return !reading->failed;
}

/* What a process has not freed, as far as it counts inside. */
struct inside_live {
	__u64 bytes;
	__u64 blocks;
};

/* Counts what the current process has not freed yet. 0 if its counters cannot be read. */
SUBPROGRAM int count_inside(struct heap *heap, struct inside_live *live)
{
	struct line_reading reading = {};
	struct inside_sums *sums = &reading.sums;

	if (!heap || !live || !heap->inside_at || !read_inside(heap->inside_at, &reading))
		return 0;
	live->bytes = unfreed_inside(sums);
	live->blocks = sums->alloc_count - sums->free_count;
	return 0;
}

/* The counters become final. The current task has the heap's memory, and no other one runs in it.
 */
SUBPROGRAM int take_inside(struct heap *heap)
{
	struct line_reading reading = {};

	if (!heap || !heap->inside_at ||
	    __sync_fetch_and_or(&heap->inside_flags, INSIDE_TAKEN) & INSIDE_TAKEN)
		return 0;
	if (read_inside(heap->inside_at, &reading))
		heap->inside = reading.sums;
	else
		set_inside_flags(heap, INSIDE_UNREAD);
	return 0;
}

/*
 * An exec is about to succeed, or to kill the process. If other threads use the memory still, the
 * last one of them takes the counters.
 */
static __always_inline void before_exec(struct thread *thread, struct heap *heap)
{
	if (!thread->borrowed)
		set_inside_flags(heap, INSIDE_EXECUTING);
	if (*(volatile __u32 *)&heap->users == 1)
		take_inside(heap);
}

/*
 * A task has left the heap, `last` if no other uses it. `has_memory`: the task has the heap's
 * memory still.
 */
static __always_inline void inside_left(struct heap *heap, bool last, bool has_memory)
{
	if (!inside || !heap->inside_at)
		return;
	if (!has_memory) {
		if (last && !(heap->inside_flags & INSIDE_TAKEN))
			set_inside_flags(heap, INSIDE_TAKEN | INSIDE_UNREAD);
		return;
	}
	if (last || (heap->inside_flags & INSIDE_EXECUTING && *(volatile __u32 *)&heap->users == 1))
		take_inside(heap);
}

#else /* Nobody has counters there. */

static __always_inline void announced(struct heap *heap, __u64 at, __u64 flags)
{
}

static __always_inline void inherit_inside(struct heap *child, struct heap *parent)
{
}

static __always_inline void inside_left(struct heap *heap, bool last, bool has_memory)
{
}

static __always_inline __u64 begin_beside_inside(__u64 heap)
{
	return 0;
}

static __always_inline void end_beside_inside(__u64 heap, __u64 allocs)
{
}

#endif

#endif
