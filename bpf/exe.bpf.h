/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The path of a heap's executable. */
#ifndef MEMLEAK_EXE_H
#define MEMLEAK_EXE_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/* A relative path can be made absolute if its directory is at most this deep. */
#define MAX_DIRECTORIES 48

/*
 * Appends a name and its NUL to heap->exe. Returns false if there is no room, or nothing to read.
 */
static __always_inline bool append_name(struct heap *heap, const void *name)
{
	__u32 used = heap->exe_len;
	long length;

	if (used >= EXE_LEN)
		return false;
	length = bpf_probe_read_kernel_str(heap->exe + used, NAME_LEN, name);
	if (length <= 0)
		return false;
	heap->exe_len = used + length;
	return true;
}

/* A place in the file system, on the way up to the process's root. */
struct walk {
	struct dentry *dentry, *root_dentry;
	struct vfsmount *mnt, *root_mnt;
};

/*
 * One step up: appends a directory's name, or crosses a mount. Returns 1 at the root, and -1 if
 * there is no way on.
 */
SUBPROGRAM int step_up(struct heap *heap, struct walk *walk)
{
	struct dentry *dentry, *parent;
	struct mount *mount, *above;
	struct vfsmount *mnt;

	if (!heap || !walk)
		return -1;
	dentry = walk->dentry;
	mnt = walk->mnt;
	if (dentry == walk->root_dentry && mnt == walk->root_mnt)
		return 1;
	parent = BPF_CORE_READ(dentry, d_parent);
	if (dentry != BPF_CORE_READ(mnt, mnt_root) && dentry != parent) {
		/*
		 * The directory was removed. Its path does not exist any more, or names something
		 * else.
		 */
		if (!BPF_CORE_READ(dentry, d_hash.pprev))
			return -1;
		walk->dentry = parent;
		return append_name(heap, BPF_CORE_READ(dentry, d_name.name)) ? 0 : -1;
	}
	mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
	above = BPF_CORE_READ(mount, mnt_parent);
	/*
	 * This is the top, but not the process's root. The path is outside of the root, or in a
	 * detached file system.
	 */
	if (above == mount)
		return -1;
	walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
	walk->mnt = (void *)above + bpf_core_field_offset(struct mount, mnt);
	return 0;
}

/*
 * Appends the names on the way up to the root. If the root cannot be reached, the path is unknown.
 */
SUBPROGRAM int walk_up(struct heap *heap, struct walk *walk)
{
	int i, found = 0;

	if (!heap || !walk)
		return 0;
	for (i = 0; i < MAX_DIRECTORIES && !found; i++)
		found = step_up(heap, walk);
	if (found <= 0)
		heap->exe_len = 0;
	return 0;
}

/*
 * Takes the path given to execve. If it is relative, the names of the directories above it follow,
 * innermost first, up to the process's root.
 */
static __always_inline void name_exe(struct heap *heap, struct linux_binprm *bprm)
{
	struct task_struct *task = current_task();
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct walk walk = {};
	long length;

	length = bpf_probe_read_kernel_str(heap->exe, EXE_LEN, BPF_CORE_READ(bprm, filename));
	/* A path that fills the buffer has probably been cut. */
	if (length <= 1 || length >= EXE_LEN)
		return;
	heap->exe_len = length;
	if (heap->exe[0] == '/')
		return;
	heap->flags |= HEAP_EXE_RELATIVE;
	walk.dentry = BPF_CORE_READ(fs, pwd.dentry);
	walk.mnt = BPF_CORE_READ(fs, pwd.mnt);
	walk.root_dentry = BPF_CORE_READ(fs, root.dentry);
	walk.root_mnt = BPF_CORE_READ(fs, root.mnt);
	walk_up(heap, &walk);
}

/*
 * Takes the program that a running process executes: its name, and those of the directories above
 * it.
 */
static __always_inline void name_running_exe(struct heap *heap, struct task_struct *task)
{
	struct file *file = BPF_CORE_READ(task, mm, exe_file);
	struct walk walk = {};

	if (!file)
		return;
	walk.dentry = BPF_CORE_READ(file, f_path.dentry);
	walk.mnt = BPF_CORE_READ(file, f_path.mnt);
	walk.root_dentry = BPF_CORE_READ(task, fs, root.dentry);
	walk.root_mnt = BPF_CORE_READ(task, fs, root.mnt);
	heap->flags |= HEAP_EXE_RELATIVE;
	walk_up(heap, &walk);
}

#endif
