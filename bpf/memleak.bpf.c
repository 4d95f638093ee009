// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The object for newer kernels. The programs, here and in the included headers, are where the
 * kernel calls memleak. The functions that they call are in the headers below them.
 */
#include "again.bpf.h"
#include "alloc.bpf.h"
#include "arrivals.bpf.h"
#include "core.h"
#include "holds.bpf.h"
#include "inode.bpf.h"
#include "inside.bpf.h"
#include "join.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "misses.bpf.h"
#include "newer.bpf.h"
#include "pids.bpf.h"
#include "probes.bpf.h"
#include "scans.bpf.h"
#include "tasks.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/*
 * kernel/trace/bpf_trace.c. Newer kernels (7.2 is one) take the context as an argument. libbpf
 * drops what follows "___".
 */
extern bool bpf_session_is_return(void) __ksym __weak;
extern bool bpf_session_is_return___of(void *ctx) __ksym __weak;

static __always_inline bool is_return(struct pt_regs *ctx)
{
	if (bpf_session_is_return___of)
		return bpf_session_is_return___of(ctx);
	return bpf_session_is_return();
}

/* Allocators, entry and return in one program: session uprobes (6.13). */
SEC("uprobe.session")
int alloc_session(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();

	use_task_stack(ctx);
	/* At the entry, 1 means that the return is not wanted. */
	if (!thread)
		return 1;
	if (!is_return(ctx))
		return !enter(ctx, thread, probe_cookie(ctx));
	leave(ctx, thread, 0);
	return 0;
}

/* Called after the programs that give the new image its heap. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(exec_holds, struct task_struct *task)
{
	if (!is_ignored(TASK_ARRIVED, false))
		hold_image(false);
	return 0;
}

/* The same for kernels that do not call back in a task's context (before 6.18). */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(exec_shows, struct task_struct *task)
{
	if (image_arrived())
		mark_unheld();
	return 0;
}

/* At the place in a dynamic loader where it tells debuggers what it has mapped. */
SEC("uprobe.multi")
int loader_holds(struct pt_regs *ctx)
{
	use_task_stack(ctx);
	libraries_arrived(ctx, probe_cookie(ctx), true);
	return 0;
}

/* The same for kernels that do not call back in a task's context (before 6.18). */
SEC("uprobe.multi.s")
int loader_waits(struct pt_regs *ctx)
{
	use_task_stack(ctx);
	libraries_arrived(ctx, probe_cookie(ctx), false);
	return 0;
}

/* Where the C library is about to end the process. */
SEC("uprobe.multi")
int at_end(struct pt_regs *ctx)
{
	use_task_stack(ctx);
	if (current_thread())
		hold_end(bpf_get_current_task_btf(), 0, true, 0);
	return 0;
}

/* The same for kernels that do not call back in a task's context (before 6.18). */
SEC("uprobe.multi.s")
int at_end_waits(struct pt_regs *ctx)
{
	use_task_stack(ctx);
	if (current_thread())
		hold_end(bpf_get_current_task_btf(), 0, false, PT_REGS_SP(ctx));
	return 0;
}

/* An exec is about to replace the memory (since 6.10). Only for counters in it. */
SEC("tp_btf/sched_prepare_exec")
int BPF_PROG(sched_prepare_exec, struct task_struct *task)
{
	struct thread *thread = thread_of(task);
	struct heap *heap = thread ? heap_by_id(thread->heap) : 0;

	if (heap)
		before_exec(thread, heap);
	return 0;
}

/* A signal may end the process that has sent it. */
SEC("tp_btf/signal_generate")
int BPF_PROG(signal_ends, int signal, struct kernel_siginfo *info, struct task_struct *target,
	     int group, int result)
{
	hold_if_fatal(signal, info, target, result);
	return 0;
}

/* memleak runs this for a process that is held at its end. */
SEC("syscall")
int stop_process(struct stop *stop)
{
	stop_threads(stop, true);
	return 0;
}

/* The same for kernels that do not call back in a task's context. Other threads run on. */
SEC("syscall")
int look_at_process(struct stop *stop)
{
	stop_threads(stop, false);
	return 0;
}

/* The same, once the process was read. */
SEC("syscall")
int release_process(struct stop *stop)
{
	return let_go(stop);
}

/* memleak asks which addresses are blocks. */
SEC("syscall")
int look_up_blocks(struct look_up *look_up)
{
	look_up_all(look_up);
	return 0;
}

/* The keeper runs this for each process that wants to sleep. */
SEC("syscall")
int let_sleep(struct sleeper *sleeper)
{
	keeper = bpf_get_current_pid_tgid() >> 32;
	let_it_sleep(sleeper->pid);
	return 0;
}

/* memleak runs this itself, once. */
SEC("raw_tp")
int identify(void *ctx)
{
	find_own_namespace();
	return 0;
}

/*
 * memleak runs this, after it has mapped a file at the address that is the argument. It finds out
 * how the kernel identifies the file. stat(2) reports other numbers if one file system lies over
 * another.
 */
SEC("raw_tp")
int identify_file(__u64 *ctx)
{
	struct arrival found = {};
	long error;

	error = identify_at(ctx[0], &found);
	identified = found;
	return error;
}
