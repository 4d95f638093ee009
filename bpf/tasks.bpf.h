/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The programs that follow tasks. They are the same on all kernels. */
#ifndef MEMLEAK_TASKS_H
#define MEMLEAK_TASKS_H

#include "core.h"
#include "join.bpf.h"
#include "lifecycle.bpf.h"
#include "memleak.h"
#include "misses.bpf.h"
#include "signals.bpf.h"
#include "sums.bpf.h"

SEC("tp_btf/task_newtask")
int BPF_PROG(task_newtask, struct task_struct *child, __u64 clone_flags)
{
	if (!is_ignored(TASK_FORKED, false))
		forked(child, clone_flags, false);
	return 0;
}

SEC("tp_btf/task_rename")
int BPF_PROG(task_rename, struct task_struct *task)
{
	renamed(task);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	if (!is_ignored(TASK_EXECUTED, false))
		executed(task, old_pid, bprm, false);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	if (!is_ignored(TASK_EXITED, false))
		exited(task, false);
	return 0;
}

SEC("tp_btf/signal_generate")
int BPF_PROG(signal_generate, int signal, void *info, struct task_struct *target)
{
	signal_sent(signal, target);
	return 0;
}

/* Runs for each task of the machine when memleak starts. */
SEC("iter/task")
int adopt_all(struct bpf_iter__task *ctx)
{
	adopt_running(ctx->task);
	return 0;
}

/*
 * Prints the pids of the chosen processes, and chooses their children. A child may come before its
 * parent here, so memleak runs this until it finds no more.
 */
SEC("iter/task")
int list_chosen(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	__u32 pid;

	if (!task || task->pid != task->tgid || !choose_descendant(task))
		return 0;
	pid = own_pid_of(task);
	bpf_seq_write(ctx->meta->seq, &pid, sizeof(pid));
	return 0;
}

/* The living tasks' shares of their heaps, for images that are still running. */
SEC("iter/task")
int living(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct thread_sum sum = {};

	if (task && sum_of(task, &sum))
		bpf_seq_write(ctx->meta->seq, &sum, sizeof(sum));
	return 0;
}

#endif
