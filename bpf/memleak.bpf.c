// SPDX-License-Identifier: GPL-2.0-or-later
/* The programs: where the kernel calls us. What they do is in the headers. */
#include "alloc.bpf.h"
#include "arrivals.bpf.h"
#include "join.bpf.h"
#include "lifecycle.bpf.h"
#include "signals.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* kernel/trace/bpf_trace.c. Newer kernels (7.2 is one) want the context; libbpf drops what follows
 * "___". */
extern bool bpf_session_is_return(void) __ksym __weak;
extern bool bpf_session_is_return___of(void *ctx) __ksym __weak;

static __always_inline bool is_return(struct pt_regs *ctx)
{
	if (bpf_session_is_return___of)
		return bpf_session_is_return___of(ctx);
	return bpf_session_is_return();
}

/* Allocators, entry and return in one: session uprobes (6.13). */
SEC("uprobe.session")
int alloc_session(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();

	/* From the entry, 1 means that the return is not wanted. */
	if (!thread)
		return 1;
	if (!is_return(ctx))
		return !enter(ctx, thread, bpf_get_attach_cookie(ctx));
	leave(ctx, thread, 0);
	return 0;
}

/* The same for kernels without sessions. */
SEC("uprobe")
int alloc_enter(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();

	if (thread)
		enter(ctx, thread, bpf_get_attach_cookie(ctx));
	return 0;
}

SEC("uretprobe")
int alloc_return(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();

	if (thread)
		leave(ctx, thread, bpf_get_attach_cookie(ctx));
	return 0;
}

/* Functions of which the entry is enough. */
SEC("uprobe.multi")
int entry_only(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();
	__u64 cookie;

	if (!thread)
		return 0;
	cookie = bpf_get_attach_cookie(ctx);
	if (kind_of(cookie) != KIND_START)
		free_entered(ctx, thread, cookie);
	else
		saw_file(thread, cookie);
	return 0;
}

/* Functions that may throw, at their entries and wherever they return. */
SEC("uprobe.multi")
int throwing(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();
	__u64 cookie;

	if (!thread)
		return 0;
	cookie = bpf_get_attach_cookie(ctx);
	switch (kind_of(cookie)) {
	case KIND_RETURN:
	case KIND_LEFT:
		leave_throwing(ctx, thread, cookie);
		break;
	case KIND_UNFOLLOWED:
		unfollowed(ctx, thread, cookie);
		break;
	default:
		enter_throwing(ctx, thread, cookie);
	}
	return 0;
}

SEC("tp_btf/task_newtask")
int BPF_PROG(task_newtask, struct task_struct *child, __u64 clone_flags)
{
	forked(child, clone_flags);
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
	executed(task, bprm);
	return 0;
}

/* After the one above: the new image has its heap. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(exec_holds, struct task_struct *task)
{
	if (!image_arrived())
		return 0;
	hold_on_return();
	return 0;
}

/* The same for kernels that do not call back in a task's context (before 6.18). */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(exec_shows, struct task_struct *task)
{
	if (image_arrived())
		unheld();
	return 0;
}

/* In a dynamic loader, where it tells debuggers what it has mapped. */
SEC("uprobe.multi.s")
int loader_maps(struct pt_regs *ctx)
{
	libraries_arrived(ctx);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	exited(task);
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
	struct task_struct *task = bpf_get_current_task_btf();
	struct pid *pid = BPF_CORE_READ(task, thread_pid);

	keeper = task->tgid;
	own_level = BPF_CORE_READ(pid, level);
	/* User space has put in how many levels /proc is above us. */
	proc_level = own_level - proc_level;
	bpf_core_read(&own_ns, sizeof(own_ns), &pid->numbers[own_level].ns);
	return 0;
}

/*
 * Run by memleak, which has mapped a file at the address that is the argument: what does the kernel
 * know the file by? stat(2) tells other numbers where one file system lies over another.
 */
SEC("raw_tp")
int identify_file(__u64 *ctx)
{
	struct arrival found = {};
	long error;

	error = bpf_find_vma(bpf_get_current_task_btf(), ctx[0], identify_mapping, &found, 0);
	identified = found;
	return error;
}

/* Gives every process that is there and wanted its heap. */
SEC("iter/task")
int adopt_all(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (task && task->pid == task->tgid)
		adopt_leader(task);
	return 0;
}

/* The living tasks' shares of their heaps, for images that still run. */
SEC("iter/task")
int living(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct thread_sum sum = {};
	struct process *process = 0;
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
		process = process_of(task);
		sum.heap = process ? process->heap : 0;
	}
	if (!sum.heap)
		return 0;
	sum.uid = BPF_CORE_READ(task, real_cred, uid.val);
	sum.outside = is_outside(task);
	bpf_core_read(sum.comm, COMM_LEN, &task->comm);
	bpf_seq_write(ctx->meta->seq, &sum, sizeof(sum));
	return 0;
}
