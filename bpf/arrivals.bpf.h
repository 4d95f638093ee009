/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds a process that has mapped unknown files until user space has examined them. The process has
 * not run any code of these files yet.
 */
#ifndef MEMLEAK_ARRIVALS_H
#define MEMLEAK_ARRIVALS_H

#include "core.h"
#include "loading.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "newer.bpf.h"
#include "survey.bpf.h"

#define SECOND_NS 1000000000ULL
/*
 * So many steps take about three seconds, which is more than HOLD_SECONDS. The limit ensures that
 * no process waits for ever.
 */
#define MAX_HOLD_STEPS (1 << 23)

/* Processes that are to be held before they return from their exec, by their task's address. */
struct pending_hold {
	struct bpf_task_work work;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct pending_hold);
} pending_holds SEC(".maps");

extern struct task_struct *bpf_task_from_pid(__s32 pid) __ksym __weak;
extern void bpf_task_release(struct task_struct *task) __ksym __weak;

/* kernel/bpf/helpers.c (6.18) */
extern int bpf_task_work_schedule_resume_impl(struct task_struct *task, struct bpf_task_work *work,
					      void *map,
					      int (*callback)(struct bpf_map *, void *, void *),
					      void *aux) __ksym __weak;
/* The same in newer kernels (7.2 is one). */
extern int
bpf_task_work_schedule_resume(struct task_struct *task, struct bpf_task_work *work, void *map,
			      int (*callback)(struct bpf_map *, void *, void *)) __ksym __weak;

static __always_inline long schedule_resume(struct task_struct *task, struct bpf_task_work *work,
					    int (*callback)(struct bpf_map *, void *, void *))
{
	if (bpf_task_work_schedule_resume)
		return bpf_task_work_schedule_resume(task, work, &pending_holds, callback);
	return bpf_task_work_schedule_resume_impl(task, work, &pending_holds, callback, 0);
}

static __always_inline bool is_killed(struct task_struct *task)
{
	return BPF_CORE_READ(task, pending.signal.sig[0]) & 1UL << (SIGKILL - 1);
}

struct hold {
	__u64 until_ns;
	__u64 answers; /* value of the global when the mappings were last read */
	__u64 stack;   /* an address that can be read */
	bool unread;   /* the mappings could not be read then */
	bool waiting;
};

/* One check whether the wait is over. */
static __always_inline bool is_hold_over(__u32 round, struct hold *hold)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 now_answered = *(volatile __u64 *)&answers;
	struct thread *thread;
	int unknown;

	/* User space is answering: the next answer may be the one that is needed. */
	if (round && now_answered != hold->answers)
		hold->until_ns = bpf_ktime_get_ns() + HOLD_SECONDS * SECOND_NS;
	if (round == 0 || hold->unread || now_answered != hold->answers) {
		hold->answers = now_answered;
		thread = thread_of(task);
		unknown = thread ? survey_current(thread) : 0;
		if (!unknown) {
			hold->waiting = false;
			return true;
		}
		hold->waiting = true;
		hold->unread = unknown < 0;
	}
	return *(volatile __u32 *)&nobody_answers || bpf_ktime_get_ns() > hold->until_ns ||
	       is_killed(task);
}

/*
 * One check that lets other tasks run. The kernel reschedules when a program reads a process's
 * memory in this way. Without preemption it does so nowhere else, and the answer may need this very
 * CPU. The process read here is the current one. Its mappings are locked meanwhile, although its
 * breakpoints have to be inserted there.
 */
static long hold_step(__u32 round, struct hold *hold)
{
	struct task_struct *task = bpf_get_current_task_btf();
	char byte;

	if (is_hold_over(round, hold))
		return 1;
	bpf_copy_from_user_task(&byte, sizeof(byte), (void *)hold->stack, task, 0);
	return 0;
}

/*
 * The same, but reads memleak's memory, whose mappings change less often. Not allowed in uprobes.
 */
static long hold_step_after_exec(__u32 round, struct hold *hold)
{
	struct task_struct *task;
	char byte;

	if (is_hold_over(round, hold))
		return 1;
	task = bpf_task_from_pid(memleak_tgid);
	if (!task)
		return 1;
	bpf_copy_from_user_task(&byte, sizeof(byte), (void *)BPF_CORE_READ(task, mm, start_code),
				task, 0);
	bpf_task_release(task);
	return 0;
}

static __always_inline void mark_heap(__u32 flag)
{
	struct thread *thread = thread_of(bpf_get_current_task_btf());
	struct heap *heap = thread ? heap_by_id(thread->heap) : 0;

	if (heap)
		__sync_fetch_and_or(&heap->flags, flag);
}

/*
 * The current process waits until all files that it has mapped are known. It can be interrupted
 * while it waits, but not stopped, and it takes no signal. It has not returned to its own code.
 */
static __always_inline void hold_current(struct task_struct *task, __u64 stack, bool after_exec)
{
	struct hold hold = {.stack = stack};
	__u64 began = bpf_ktime_get_ns(), waited;

	/* If memleak did not answer during a whole wait, it does not answer now. */
	hold.until_ns = began;
	if (waited_in_vain != answers)
		hold.until_ns += HOLD_SECONDS * SECOND_NS;
	if (after_exec)
		bpf_loop(MAX_HOLD_STEPS, hold_step_after_exec, &hold, 0);
	else
		bpf_loop(MAX_HOLD_STEPS, hold_step, &hold, 0);
	waited = bpf_ktime_get_ns() - began;
	__sync_fetch_and_add(&holds, 1);
	if (waited > longest_hold_ns)
		longest_hold_ns = waited;
	if (!hold.waiting || is_killed(task))
		return;
	waited_in_vain = hold.answers;
	mark_heap(HEAP_LATE);
}

/* Runs in the process that has executed a file, on its way back from the kernel. */
static int hold_after_exec(struct bpf_map *map, void *key, void *value)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 id = (__u64)task;

	hold_current(task, 0, true);
	/* Its loader may have got its probes meanwhile. A process that is killed here runs nothing.
	 */
	if (is_killed(task) || begins_in_loader())
		mark_heap(HEAP_LOADING);
	bpf_map_delete_elem(&pending_holds, &id);
	return 0;
}

/*
 * A new image is mapped: program and interpreter. Returns whether it has files that are not known.
 */
static __always_inline bool image_arrived(void)
{
	struct thread *thread = thread_of(bpf_get_current_task_btf());

	return thread && survey_current(thread);
}

/* The current process waits on its way back from the kernel. */
static __always_inline void hold_on_return(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pending_hold blank = {}, *pending_hold;
	__u64 id = (__u64)task;

	if (!bpf_map_update_elem(&pending_holds, &id, &blank, BPF_ANY)) {
		pending_hold = bpf_map_lookup_elem(&pending_holds, &id);
		if (pending_hold && !schedule_resume(task, &pending_hold->work, hold_after_exec))
			return;
	}
	mark_heap(HEAP_LATE);
}

/* Holds the current process after an exec, if it has mapped files that are not known. */
static __always_inline void hold_image(bool again)
{
	struct thread *thread = thread_of(bpf_get_current_task_btf());
	struct heap *heap = thread ? heap_by_id(thread->heap) : 0;

	if (!heap || heap->flags & HEAP_SURVEYED)
		return;
	__sync_fetch_and_or(&heap->flags, HEAP_SURVEYED);
	if (again)
		__sync_fetch_and_add(&retold[TASK_ARRIVED], 1);
	if (survey_current(thread))
		hold_on_return();
}

/*
 * The current process goes on, although it has files that are not known. If it has a dynamic loader
 * that is known, that will hold the process later. A static program is late.
 */
static __always_inline void mark_unheld(void)
{
	mark_heap(HEAP_UNHELD);
}

/*
 * The dynamic loader has mapped the libraries that it was asked for, and called none of them yet.
 */
static __always_inline void libraries_arrived(struct pt_regs *ctx, __s64 distance)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct thread *thread = thread_of(task);
	struct heap *heap;

	/* A thread that may join has joined: the loader allocates before it maps a library. */
	if (thread && survey_current(thread))
		hold_current(task, PT_REGS_SP(ctx), false);
	heap = thread ? heap_by_id(thread->heap) : 0;
	if (!heap)
		return;
	if (heap->flags & HEAP_UNHELD)
		clear_flags(heap, HEAP_UNHELD);
	if (!is_killed(task))
		loader_reported(ctx, heap, distance);
}

#endif
