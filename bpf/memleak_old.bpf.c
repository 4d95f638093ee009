// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The object for older kernels, which lack features that memleak.bpf.c uses (see older.bpf.h). The
 * programs at probes are loaded once as they are. Then they are loaded again for each probe, with
 * its cookie put in.
 */
#define OLDER_KERNELS
#include "core.h"
#include "heap.bpf.h"
#include "inode.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "older.bpf.h"
#include "pids.bpf.h"
#include "probes.bpf.h"
#include "tasks.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/*
 * Set by user space to the pid of a process, as memleak sees it. It is 0 again when the process has
 * been found.
 */
__u32 wanted_pid = 0;

static __always_inline bool is_wanted_pid(struct task_struct *task)
{
	return wanted_pid && task && task->pid == task->tgid && own_pid_of(task) == wanted_pid;
}

/* Follows that process: a command that waits for its exec. */
SEC("iter/task")
int follow(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (is_wanted_pid(task) && !thread_of(task) && new_thread(task))
		wanted_pid = 0;
	return 0;
}

/* Chooses that process: one that is already running. */
SEC("iter/task")
int choose(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (is_wanted_pid(task) && choose_process(task))
		wanted_pid = 0;
	return 0;
}

SEC("tp_btf/sched_process_free")
int BPF_PROG(sched_process_free, struct task_struct *task)
{
	task_freed(task);
	return 0;
}

/*
 * A tree of mappings is not deeper: twice the logarithm of the number of mappings that a process
 * may have.
 */
#define MAX_DEPTH 64

/* As identify_file in memleak.bpf.c. */
SEC("raw_tp")
int identify_file(__u64 *ctx)
{
	struct mm_struct___tree *mm = (void *)BPF_CORE_READ(current_task(), mm);
	struct arrival found = {};
	__u64 address = ctx[0];
	struct vm_area_struct *vma;
	struct rb_node *node;
	struct file *file;
	int i;

	/* A newer kernel, on which these programs are tested. */
	if (!bpf_core_field_exists(mm->mm_rb))
		return -ENOENT;
	node = BPF_CORE_READ(mm, mm_rb.rb_node);
	for (i = 0; i < MAX_DEPTH && node; i++) {
		vma = (void *)node - bpf_core_field_offset(struct vm_area_struct___tree, vm_rb);
		if (address < BPF_CORE_READ(vma, vm_start)) {
			node = BPF_CORE_READ(node, rb_left);
		} else if (address >= BPF_CORE_READ(vma, vm_end)) {
			node = BPF_CORE_READ(node, rb_right);
		} else {
			file = BPF_CORE_READ(vma, vm_file);
			if (!file)
				return -ENOENT;
			identify_inode(BPF_CORE_READ(file, f_inode), &found);
			identified = found;
			return 0;
		}
	}
	return -ENOENT;
}
