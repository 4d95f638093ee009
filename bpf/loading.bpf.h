/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which images have run no code but their dynamic loader's. glibc's loader has an allocator of its
 * own, which is not counted. So such an image has allocated nothing, whatever it has mapped.
 */
#ifndef MEMLEAK_LOADING_H
#define MEMLEAK_LOADING_H

#include "core.h"
#include "inode.bpf.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/*
 * The dynamic loaders with probes where they report what they map. A machine has a few; containers
 * bring more. An image whose loader is not here is not known to be loading.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct file_id);
	__type(value, struct file_version);
} loaders SEC(".maps");

/* More than the kernel puts into a new process's auxiliary vector (AT_VECTOR_SIZE). */
#define MAX_AUXV 32

/* An entry of the auxiliary vector. */
struct auxv {
	unsigned long type, value;
};

/*
 * An address in the loader that the kernel has mapped for the new image; 0 if it has mapped none. A
 * loader that is executed like a program is a program here, as a static program may look like one.
 */
static __always_inline __u64 loader_of(struct mm_struct *mm)
{
	const char *vector = (const char *)mm + bpf_core_field_offset(mm->saved_auxv);
	struct auxv entry;
	int i;

	for (i = 0; i < MAX_AUXV; i++) {
		if (bpf_probe_read_kernel(&entry, sizeof(entry), vector + i * sizeof(entry)) ||
		    entry.type == AT_NULL)
			break;
		if (entry.type == AT_BASE)
			return entry.value;
	}
	return 0;
}

/* Whether the current image, which has run nothing yet, begins in a loader with probes for it. */
SUBPROGRAM int begins_in_loader(void)
{
	struct thread *thread = thread_of(current_task());
	struct mm_struct *mm = BPF_CORE_READ(current_task(), mm);
	struct file_version *version;
	struct arrival first = {};
	struct file_id file;
	__u64 address;

	if (pid_filter && thread && thread->unreached)
		return 0;
	if (!mm)
		return 0;
	address = loader_of(mm);
	if (!address || identify_at(address, &first))
		return 0;
	file = first.file;
	version = bpf_map_lookup_elem(&loaders, &file);
	return version && version->changed_sec == first.version.changed_sec &&
	       version->changed_nsec == first.version.changed_nsec;
}

/* The loader is about to map libraries (enum r_state in link.h). */
#define RT_ADD 1

/*
 * The loader reports to debuggers. Returns whether code of other files comes next in an image that
 * has run no such code yet. At a program's start the loader reports twice: before it maps the
 * libraries, and after it.
 * A program may have a copy of its own of the loader's state. Then the state at hand stays what it
 * was at the first report, so at the second one it does not count.
 */
static __always_inline bool hands_over(struct pt_regs *ctx, struct heap *heap, __s64 distance)
{
	__u32 state = 0;

	if (!(heap->flags & HEAP_LOADING))
		return false;
	if (!distance || heap->flags & HEAP_MAPPING ||
	    bpf_probe_read_user(&state, sizeof(state), (void *)(PT_REGS_IP(ctx) + distance)) ||
	    state != RT_ADD)
		return true;
	set_flags(heap, HEAP_MAPPING);
	return false;
}

#endif
