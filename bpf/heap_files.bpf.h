/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The probed files that a heap has used: its row names its allocators. */
#ifndef MEMLEAK_HEAP_FILES_H
#define MEMLEAK_HEAP_FILES_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/* Records in the heap that it uses a probed file. Returns whether that succeeded. */
SUBPROGRAM int add_file(struct heap *heap, __u32 file)
{
	int i;

	if (!heap)
		return 0;
	for (i = 0; i < HEAP_FILES && i < heap->file_count; i++) {
		if (heap->files[i] == file)
			return 1;
	}
	return append_file(heap, file);
}

/* The thread learns all files that its heap has recorded. */
static __always_inline void note_all_files(struct thread *thread, struct heap *heap)
{
	int i;

	for (i = 0; i < HEAP_FILES && i < heap->file_count; i++)
		thread->files |= 1ULL << (heap->files[i] & 63);
}

/* Records the file of the function that was called, in the heap and in the thread. */
static __always_inline void note_file(struct thread *thread, __u64 cookie)
{
	__u32 file = (cookie >> COOKIE_FILE) & (MAX_FILES - 1);
	__u64 bit = 1ULL << (file & 63);
	struct heap *heap;

	if (thread->files & bit)
		return;
	heap = heap_by_id(thread->heap);
	if (!heap)
		return;
	if (add_file(heap, file))
		thread->files |= bit;
}

#endif
