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
 * A program that memleak runs at once, in its own context. Before 5.10 that takes an iterator. It
 * calls the program for each BPF map of the machine, of which memleak has some, and once more at
 * the end. So the program must do the same each time, or do it once.
 */
#define RUN_BY_MEMLEAK SEC("iter/bpf_map")

RUN_BY_MEMLEAK
int identify(void *ctx)
{
	if (!memleak_tgid)
		find_own_namespace();
	return 0;
}

/* Set by user space to the address at which memleak has mapped a file. */
__u64 mapped_at = 0;

/* What became of it: 0, or the number of an error. */
__u32 identify_error = 0;

/* As identify_file in memleak.bpf.c. */
RUN_BY_MEMLEAK
int identify_file(void *ctx)
{
	struct arrival found = {};
	long error = identify_at(mapped_at, &found);

	if (!error)
		identified = found;
	identify_error = -error;
	return 0;
}
