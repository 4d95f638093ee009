/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A second program for each event that must not be missed, called after the first.
 * The kernel does not call a program of a tracepoint that is already running on the same CPU
 * (bpf_prog_get_recursion_context in include/linux/bpf.h). Formerly that took an interrupt. In
 * newer kernels (7.2 is one) tracepoints can be preempted. Then the events of the tasks that run
 * meanwhile are missed.
 */
#ifndef MEMLEAK_AGAIN_H
#define MEMLEAK_AGAIN_H

#include "arrivals.bpf.h"
#include "core.h"
#include "lifecycle.bpf.h"
#include "memleak.h"
#include "misses.bpf.h"

SEC("tp_btf/task_newtask")
int BPF_PROG(newtask_again, struct task_struct *child, __u64 clone_flags)
{
	if (!is_ignored(TASK_FORKED, true))
		forked(child, clone_flags, true);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(exec_again, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	if (!is_ignored(TASK_EXECUTED, true))
		executed(task, old_pid, bprm, true);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(exec_holds_again, struct task_struct *task)
{
	if (!is_ignored(TASK_ARRIVED, true))
		hold_image(true);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(exit_again, struct task_struct *task)
{
	if (!is_ignored(TASK_EXITED, true))
		exited(task, true);
	return 0;
}

#endif
