/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The programs that follow tasks, which are the same on all kernels. */
#ifndef MEMLEAK_TASKS_H
#define MEMLEAK_TASKS_H

#include "signals.bpf.h"

/* Whether to do what the kernel does by itself, now and then (see again.bpf.h). */
static __always_inline bool is_ignored(enum task_event event, bool again)
{
	if (misses <= again || bpf_get_prandom_u32() & 1)
		return false;
	__sync_fetch_and_add(&ignored[event][again], 1);
	return true;
}

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
		executed(task, bprm, false);
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

/* Run once by memleak itself: which pid namespace is ours? */
SEC("raw_tp")
int identify(void *ctx)
{
	struct task_struct *task = current_task();
	struct pid *pid = BPF_CORE_READ(task, thread_pid);

	keeper = task_field(task, tgid);
	own_level = BPF_CORE_READ(pid, level);
	/* User space has put in how many levels /proc is above us. */
	proc_level = own_level - proc_level;
	bpf_core_read(&own_ns, sizeof(own_ns), &pid->numbers[own_level].ns);
	return 0;
}

/* The living tasks' shares of their heaps, for images that still run. */
SEC("iter/task")
int living(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct thread_sum sum = {};
	struct thread *thread;

	if (!task)
		return 0;
	thread = thread_of(task);
	sum.leader = task->pid == task->tgid;
	if (thread && thread->heap) {
		sum.heap = thread->heap;
		sum.sum = thread->sum;
		sum.live = thread->live;
		sum.sole = thread->sole;
		sum.leader &= !thread->borrowed;
		sum.joined = 1;
	} else if (sum.leader) {
		/* It may have a heap that it has not joined. */
		sum.heap = heap_of_process(task);
	}
	if (!sum.heap)
		return 0;
	sum.uid = BPF_CORE_READ(task, real_cred, uid.val);
	sum.outside = is_outside(task);
	bpf_core_read(sum.comm, COMM_LEN, &task->comm);
	bpf_seq_write(ctx->meta->seq, &sum, sizeof(sum));
	return 0;
}

#endif
