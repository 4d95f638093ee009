/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a process is held at its end, and how its other threads are stopped until it was read. */
#ifndef MEMLEAK_SCANS_H
#define MEMLEAK_SCANS_H

#include "core.h"
#include "endings.bpf.h"
#include "holds.bpf.h"
#include "kernels.bpf.h"
#include "lookups.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "pids.bpf.h"

/* Threads of the processes that are being read. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} states SEC(".maps");

/* kernel/bpf/task_iter.c (6.7) */
struct bpf_iter_task {
	__u64 __opaque[3];
} __attribute__((aligned(8)));
enum { BPF_TASK_ITER_PROC_THREADS = 2 };
extern int bpf_iter_task_new(struct bpf_iter_task *it, struct task_struct *task,
			     unsigned int flags) __ksym __weak;
extern struct task_struct *bpf_iter_task_next(struct bpf_iter_task *it) __ksym __weak;
extern void bpf_iter_task_destroy(struct bpf_iter_task *it) __ksym __weak;
extern void bpf_rcu_read_lock(void) __ksym __weak;
extern void bpf_rcu_read_unlock(void) __ksym __weak;

/* include/uapi/asm-generic/siginfo.h */
enum { SI_USER = 0, SI_TKILL = -6 };
/* include/linux/sched/signal.h: in place of a pointer to what is known of a signal. */
enum { SEND_SIG_NOINFO = 0, SEND_SIG_PRIV = 1 };
/* uapi/asm-generic/signal.h */
enum { SIGPIPE = 13 };
/* include/trace/events/signal.h */
enum { TRACE_SIGNAL_DELIVERED = 0, TRACE_SIGNAL_IGNORED = 1 };
#define SIGNAL_BIT(signal) (1ULL << ((signal)-1))
/* SIGKILL, and signals that do not end a process: SIGCHLD, SIGCONT, SIGURG, SIGWINCH, stops. */
#define NOT_FATAL                                                                                  \
	(SIGNAL_BIT(9) | SIGNAL_BIT(17) | SIGNAL_BIT(18) | SIGNAL_BIT(23) | SIGNAL_BIT(28) |       \
	 SIGNAL_BIT(19) | SIGNAL_BIT(20) | SIGNAL_BIT(21) | SIGNAL_BIT(22))
/*
 * Signals that leave a core. Of other fatal ones, the kernel kills all threads as soon as the
 * signal is sent. Some of them might be gone before they are stopped.
 */
#define LEAVES_CORE                                                                                \
	(SIGNAL_BIT(3) | SIGNAL_BIT(4) | SIGNAL_BIT(5) | SIGNAL_BIT(6) | SIGNAL_BIT(7) |           \
	 SIGNAL_BIT(8) | SIGNAL_BIT(11) | SIGNAL_BIT(24) | SIGNAL_BIT(25) | SIGNAL_BIT(31))

/* The bit of a signal that the kernel has sent. The verifier wants to see a bound. */
static __always_inline __u64 bit_of(int signal)
{
	return SIGNAL_BIT((signal - 1 & 63) + 1);
}

/*
 * The current thread is about to end its process. It is held on its way back from the kernel, or
 * here, in a sleepable program that may read at `stack`. `raised`: signals by which it ends it.
 */
static __always_inline void hold_end(struct task_struct *task, __u64 raised, bool on_return,
				     __u64 stack)
{
	struct thread *thread = thread_of(task);
	struct heap *heap = thread ? heap_by_id(thread->heap) : 0;
	struct ending ending = {};
	__u32 why;

	if (!heap || thread->borrowed)
		return;
	/* Another thread does so, too. It was first. */
	if (is_held_at_end(heap)) {
		if (on_return)
			hold_at_end(task, heap, STOPPED, 0);
		else
			hold_end_here(task, heap, stack);
		return;
	}
	if (heap->reach != REACH_UNASKED)
		return;
	why = is_reading_wanted(thread, heap) ? objection_to_reading(task, heap) : REACH_UNWANTED;
	if (!changes_reach(heap, REACH_UNASKED, why ? why : REACH_WAITING) || why)
		return;
	ending.heap = heap->id;
	ending.task = task->pid;
	ending.tid = own_pid_of(task);
	ending.proc_tid = proc_pid_of(task);
	if (on_return && !hold_at_end(task, heap, raised ? DYING : ENDING, raised)) {
		give_up_reading(heap, REACH_FAILED);
		return;
	}
	if (bpf_ringbuf_output(&endings, &ending, sizeof(ending), BPF_RB_FORCE_WAKEUP))
		give_up_reading(heap, REACH_FAILED);
	else if (!on_return)
		hold_end_here(task, heap, stack);
}

/*
 * Whether the current thread has sent itself this signal, or has caused it by a fault, and it ends
 * the process. A signal from elsewhere may arrive at any moment of a process, so no process is held
 * for one: what a verdict said would be chance.
 */
static __always_inline bool dies_of(struct task_struct *task, int signal,
				    struct kernel_siginfo *info)
{
	__u64 bit = bit_of(signal);
	struct signal_struct *process = BPF_CORE_READ(task, signal);
	struct sighand_struct *handlers = BPF_CORE_READ(task, sighand);
	void *handler = 0;
	int code;

	if (bit & NOT_FATAL || BPF_CORE_READ(task, blocked.sig[0]) & bit ||
	    BPF_CORE_READ(task, ptrace) || BPF_CORE_READ(process, flags) & SIGNAL_UNKILLABLE)
		return false;
	if (bpf_core_read(&handler, sizeof(handler),
			  &handlers->action[signal - 1 & 63].sa.sa_handler) ||
	    handler)
		return false;
	if (!(bit & LEAVES_CORE) && BPF_CORE_READ(process, nr_threads) > 1)
		return false;
	if (info == (void *)SEND_SIG_NOINFO)
		return signal == SIGPIPE;
	if (info == (void *)SEND_SIG_PRIV)
		return false;
	code = BPF_CORE_READ(info, si_code);
	return code == SI_USER || code == SI_TKILL || code > 0;
}

/* Signals that the kernel sends a process's threads once this one has decided that it dies. */
static __always_inline __u64 signals_with(__u64 bit)
{
	return bit & LEAVES_CORE ? bit : bit | SIGNAL_BIT(SIGKILL);
}

/*
 * A signal was ignored. If it would end the target, the kernel does so as the target dies of
 * another one already. The target must not wait any longer.
 */
static __always_inline void let_die(struct task_struct *target, int signal)
{
	__u64 bit = bit_of(signal);
	bool ends = signal == SIGKILL || !(bit & NOT_FATAL);
	struct held *held;
	struct heap *heap;

	if (!ends || !(BPF_CORE_READ(target, signal, flags) & SIGNAL_GROUP_EXIT))
		return;
	held = entry_of(target, AWAKE);
	heap = held && held->hold.moment == DYING ? heap_by_id(held->hold.heap) : 0;
	if (heap)
		give_up_reading(heap, REACH_SIGNAL);
}

/* A signal was sent. */
static __always_inline void hold_if_fatal(int signal, struct kernel_siginfo *info,
					  struct task_struct *target, int result)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (result == TRACE_SIGNAL_IGNORED)
		let_die(target, signal);
	else if (result == TRACE_SIGNAL_DELIVERED && target == task && dies_of(task, signal, info))
		hold_end(task, signals_with(bit_of(signal)), true, 0);
}

/* ---- memleak asks ---------------------------------------------------------------------------- */

static __always_inline void read_state(struct task_struct *task, struct thread_state *state)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);

	_Static_assert(sizeof(struct pt_regs) <= sizeof(state->registers), "registers fit");
	bpf_probe_read_kernel(state->registers, sizeof(*regs), regs);
	state->sp = BPF_CORE_READ(regs, sp);
#if defined(__TARGET_ARCH_x86)
	state->tls = BPF_CORE_READ(task, thread.fsbase);
#endif
}

static __always_inline int look_at(struct heap *heap, struct stop *stop, __u32 tid, __u32 number,
				   bool stops)
{
	struct thread_state state = {};
	struct task_struct *task;
	struct thread *thread;
	struct held *held;

	if (!heap || !stop)
		return 0;
	task = bpf_task_from_pid(tid);
	if (!task)
		return 0;
	thread = thread_of(task);
	held = entry_of(task, AWAKE);
	if (thread)
		stop->hashed += thread->sum.hashed;
	if (is_realtime(task))
		give_up_reading(heap, REACH_REALTIME);
	if (!stops) {
		/* The process's only thread is in the program that holds it. */
	} else if (!held || held->hold.moment < ENDING) {
		stop->unsettled++;
		if (!held)
			hold_at_end(task, heap, STOPPED, 0);
	} else if (!held->hold.surveyed && BPF_CORE_READ(task, on_cpu)) {
		stop->unsettled++;
	}
	if (number >= stop->skip) {
		state.heap = heap->id;
		state.at_end = held && held->hold.moment == ENDING;
		read_state(task, &state);
		if (!bpf_ringbuf_output(&states, &state, sizeof(state), 0))
			stop->told++;
	}
	bpf_task_release(task);
	return 0;
}

/*
 * Stops a thread of a process that is held at its end, and tells its registers. It is a global
 * function, and so verified once, not at every turn of the loop that calls it. Such a function can
 * take no task (before 6.9), so it takes the thread's id.
 */
SUBPROGRAM int stop_thread(struct heap *heap, struct stop *stop, __u32 tid, __u32 number)
{
	return look_at(heap, stop, tid, number, true);
}

/* The same without stopping it. */
SUBPROGRAM int look_at_thread(struct heap *heap, struct stop *stop, __u32 tid, __u32 number)
{
	return look_at(heap, stop, tid, number, false);
}

/*
 * The leader has exited. What lies below its stack pointer is left over. A function of its own, as
 * the state is large, and its caller's stack is under that of `stop_thread`, too.
 */
SUBPROGRAM int tell_of_leader(struct heap *heap, struct stop *stop, __u32 number)
{
	struct thread_state state = {};

	if (!heap || !stop || number < stop->skip)
		return 0;
	state.heap = heap->id;
	state.sp = heap->leader_sp;
	if (!bpf_ringbuf_output(&states, &state, sizeof(state), 0))
		stop->told++;
	return 0;
}

/*
 * The process is about to be read, and may have waited for that for long. A function of its own as
 * `tell_of_leader`.
 */
SUBPROGRAM int look_at_timers(struct heap *heap, struct stop *stop)
{
	struct task_struct *task;

	if (!heap || !stop || heap->reach != REACH_WAITING)
		return 0;
	task = bpf_task_from_pid(stop->task);
	if (!task)
		return 0;
	if (may_expire_within(task, read_within_ns))
		changes_reach(heap, REACH_WAITING, REACH_TIMER);
	bpf_task_release(task);
	return 0;
}

/*
 * The flags of a heap that may have blocks from before it was followed, or from calls that had no
 * probe.
 */
#define HAVE_UNSEEN                                                                                \
	(HEAP_FORKED | HEAP_ATTACHED | HEAP_LATE | HEAP_UNHELD | HEAP_UNREACHED |                  \
	 HEAP_UNEXAMINED | HEAP_NO_SYMBOLS)

/*
 * Stops the threads of a process that is held at its end. To be called again until no thread is
 * unsettled: a thread that runs in user space stops on its way back from the kernel, which the
 * first call brings it into. A thread that is blocked in the kernel stays blocked, and would stop
 * on its way back.
 */
static __always_inline void stop_threads(struct stop *stop, bool stops)
{
	struct task_struct *task = bpf_task_from_pid(stop->task), *thread;
	struct heap *heap = heap_by_id(stop->heap);
	struct bpf_iter_task threads;
	__u64 id = stop->heap;
	__u32 number = 0, tid;
	__u8 one = 1;

	stop->told = 0;
	stop->unsettled = 0;
	stop->hashed = heap ? heap->sum.hashed : 0;
	stop->is_held = 0;
	if (!task)
		return;
	if (heap)
		look_at_timers(heap, stop);
	if (heap && heap->reach == REACH_WAITING) {
		heap->read_until_ns = bpf_ktime_get_ns() + read_within_ns;
		bpf_map_update_elem(&unlisted, &id, &one, BPF_ANY);
		changes_reach(heap, REACH_WAITING, REACH_READING);
	}
	if (heap && heap->reach == REACH_READING) {
		bpf_rcu_read_lock();
		bpf_iter_task_new(&threads, task, BPF_TASK_ITER_PROC_THREADS);
		while ((thread = bpf_iter_task_next(&threads))) {
			if (BPF_CORE_READ(thread, flags) & PF_EXITING)
				continue;
			tid = BPF_CORE_READ(thread, pid);
			if (stops)
				stop_thread(heap, stop, tid, number++);
			else
				look_at_thread(heap, stop, tid, number++);
		}
		bpf_iter_task_destroy(&threads);
		if (heap->flags & HEAP_LEADER_GONE)
			tell_of_leader(heap, stop, number++);
		bpf_rcu_read_unlock();
		stop->threads = number;
		stop->has_unseen = heap->lost_blocks || heap->flags & HAVE_UNSEEN;
		stop->inside_at = heap->inside_flags & INSIDE_UNREAD ? 0 : heap->inside_at;
		stop->file_count = heap->file_count;
		__builtin_memcpy(stop->files, heap->files, sizeof(stop->files));
		stop->is_held = heap->reach == REACH_READING;
	}
	bpf_task_release(task);
}

/* A process ends at once when it was read. If something keeps it, its other threads go on then. */
#define LEAVES_WITHIN_NS 20000000ULL

/* Lets the process go on. Returns whether it was held until now. */
static __always_inline bool let_go(struct stop *stop)
{
	struct heap *heap = heap_by_id(stop->heap);
	bool held;

	if (heap)
		heap->read_until_ns = bpf_ktime_get_ns() + LEAVES_WITHIN_NS;
	held = heap && changes_reach(heap, REACH_READING, REACH_READ);
	__sync_fetch_and_add(&readings, 1);
	return held;
}

#endif
