/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a process waits until user space has examined the files that it has mapped, or has read its
 * memory at its end. It has not returned to its own code. It can be killed meanwhile. While its
 * files are examined, it cannot be stopped and takes no signal. At its end, both let it go on.
 *
 * Where the kernel calls back in a task's context (6.18), the wait is a chain of short works on the
 * way back from the kernel. Each of them schedules the next one first, so the kernel finds it as
 * soon as this one has ended. Between two works the kernel lets other tasks run, and nobody who
 * waits for running programs waits longer than for one work. Elsewhere one program waits.
 */
#ifndef MEMLEAK_HOLDS_H
#define MEMLEAK_HOLDS_H

#include "core.h"
#include "endings.bpf.h"
#include "loading.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"
#include "newer.bpf.h"
#include "survey.bpf.h"

#define SECOND_NS 1000000000ULL
/* How long one work of a chain looks for an answer, if it does not sleep. */
#define WORK_NS 50000ULL
/* More looks than a work has time for. */
#define MAX_WORK_STEPS 4096
/*
 * A process that waits for longer asks the keeper to let it sleep. Most files are examined within
 * that time, and a process that sleeps finds the answer some milliseconds late.
 */
#define AWAKE_NS 5000000ULL
/*
 * So many steps take about three seconds, which is more than HOLD_SECONDS. The limit ensures that
 * no process waits for ever.
 */
#define MAX_HOLD_STEPS (1 << 23)

/* When a process is held. */
enum moment {
	EXEC,	  /* its new image has run nothing yet */
	HANDOVER, /* its loader is about to let other code run for the first time */
	LATER,
	ENDING,	 /* this thread is about to end the process */
	DYING,	 /* the same, by a signal that the thread has raised */
	STOPPED, /* another thread is */
};

struct hold {
	enum moment moment;
	__u64 began_ns;
	__u64 until_ns;
	__u64 answers; /* value of the global when the mappings were last read */
	__u64 heap;    /* id of the heap; only at the end of a process */
	__u64 raised;  /* DYING: the signal, and what the kernel has sent because of it */
	__u64 stack;   /* an address that can be read; only of a wait in one program */
	__u32 turn;    /* which of two works is the current one */
	bool surveyed;
	bool unread; /* the mappings could not be read then */
	bool waiting;
	bool asked;  /* the keeper was asked */
	bool called; /* the keeper knows of it */
	bool sleeps; /* the works that the keeper has scheduled go on with the wait */
};

/*
 * Processes that are held, or are to be held, on their way back from the kernel. A work cannot
 * schedule itself, so two entries take turns.
 */
struct place {
	__u64 task; /* its address */
	__u64 at;   /* one of enum chain, plus the turn */
};

enum chain { AWAKE = 0, ASLEEP = 2, PLACES = 4 };

struct held {
	struct bpf_task_work work;
	struct hold hold; /* only in the first entry, for both chains */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct place);
	__type(value, struct held);
} held SEC(".maps");

/* Processes that want to sleep, by their ids in the initial pid namespace. The keeper reads it. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} sleepers SEC(".maps");

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
		return bpf_task_work_schedule_resume(task, work, &held, callback);
	return bpf_task_work_schedule_resume_impl(task, work, &held, callback, 0);
}

static __always_inline bool is_killed(struct task_struct *task)
{
	return BPF_CORE_READ(task, pending.signal.sig[0]) & 1UL << (SIGKILL - 1);
}

static __always_inline struct heap *current_heap(void)
{
	struct thread *thread = thread_of(bpf_get_current_task_btf());

	return thread ? heap_by_id(thread->heap) : 0;
}

static __always_inline void mark_heap(__u32 flag)
{
	struct heap *heap = current_heap();

	if (heap)
		set_flags(heap, flag);
}

static __always_inline void unmark_heap(__u32 flag)
{
	struct heap *heap = current_heap();

	if (heap)
		clear_flags(heap, flag);
}

/* The current process goes on. What it has run so far may have been its loader's code only. */
static __always_inline void leave_loader(enum moment moment)
{
	/* A process that is killed runs nothing more. */
	bool runs = !is_killed(bpf_get_current_task_btf());

	if (moment == HANDOVER && runs)
		unmark_heap(HEAP_LOADING);
	if (moment != EXEC)
		return;
	/* Its loader may have got its probes meanwhile. */
	if (!runs || begins_in_loader())
		mark_heap(HEAP_LOADING);
	else
		unmark_heap(HEAP_LOADING);
}

static __always_inline void begin_hold(struct hold *hold, enum moment moment)
{
	hold->moment = moment;
	hold->began_ns = bpf_ktime_get_ns();
	hold->until_ns = hold->began_ns;
	/* If memleak did not answer during a whole wait, it does not answer now. */
	if (waited_in_vain != answers)
		hold->until_ns += HOLD_SECONDS * SECOND_NS;
}

/* Of a wait at the end of a process. Whoever finds out that it is over tells all threads. */
static __always_inline bool is_end_over(struct hold *hold)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct heap *heap = heap_by_id(hold->heap);
	__u64 now = bpf_ktime_get_ns(), now_read = *(volatile __u64 *)&readings;

	hold->surveyed = true;
	if (!heap || *(volatile __u32 *)&nobody_answers)
		return true;
	/* The other threads wait until the process ends: what they did now would not be judged. */
	if (hold->moment == STOPPED && heap->reach == REACH_READ)
		return is_killed(task) || now > heap->read_until_ns;
	if (!is_held_at_end(heap))
		return true;
	if (is_called_away(task, hold->raised)) {
		give_up_reading(heap, REACH_SIGNAL);
		return true;
	}
	/* User space reads others before: this one is not late as long as it makes progress. */
	if (now_read != hold->answers) {
		hold->answers = now_read;
		hold->until_ns = now + read_within_ns;
		/* Timers were looked at for the time until then. */
		if (heap->reach == REACH_WAITING && may_expire_within(task, read_within_ns))
			changes_reach(heap, REACH_WAITING, REACH_TIMER);
	}
	if (now > (heap->reach == REACH_READING ? heap->read_until_ns : hold->until_ns)) {
		give_up_reading(heap, REACH_TOO_LONG);
		unread_in_vain = now_read;
		return true;
	}
	return false;
}

/* Of a wait until files are examined. */
static __always_inline bool is_arrival_over(struct hold *hold)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 now_answered = *(volatile __u64 *)&answers, now;
	struct thread *thread;
	int unknown;

	/* User space is answering: the next answer may be the one that is needed. */
	if (hold->surveyed && (now_answered != hold->answers || *(volatile __u32 *)&attaching))
		hold->until_ns = bpf_ktime_get_ns() + HOLD_SECONDS * SECOND_NS;
	if (!hold->surveyed || hold->unread || now_answered != hold->answers) {
		hold->surveyed = true;
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
	now = bpf_ktime_get_ns();
	return *(volatile __u32 *)&nobody_answers || now > hold->until_ns ||
	       now > hold->began_ns + LONGEST_HOLD_SECONDS * SECOND_NS || is_killed(task);
}

/*
 * One check whether the wait of the current process is over. `at_end`: it waits at its end. Where
 * that is a constant, the verifier sees one of the two waits only.
 */
static __always_inline bool is_hold_over(struct hold *hold, bool at_end)
{
	return at_end ? is_end_over(hold) : is_arrival_over(hold);
}

static __always_inline void end_hold(struct task_struct *task, struct hold *hold, bool at_end)
{
	__u64 waited = bpf_ktime_get_ns() - hold->began_ns;

	if (hold->called)
		__sync_fetch_and_sub(&sleeping, 1);
	if (at_end)
		return;
	leave_loader(hold->moment);
	__sync_fetch_and_add(&holds, 1);
	if (waited > longest_hold_ns)
		longest_hold_ns = waited;
	if (!hold->waiting || is_killed(task))
		return;
	waited_in_vain = hold->answers;
	mark_heap(HEAP_LATE);
}

/* ---- in one program -------------------------------------------------------------------------- */

/*
 * One check that lets other tasks run. The kernel reschedules when a program reads a process's
 * memory in this way. Without preemption it does so nowhere else, and the answer may need this very
 * CPU. The process read here is the current one, as a program at a uprobe may name no other one.
 * Its mappings are locked meanwhile, although its breakpoints have to be inserted there.
 */
static __always_inline long step(struct hold *hold, bool at_end)
{
	struct task_struct *task = bpf_get_current_task_btf();
	char byte;

	if (is_hold_over(hold, at_end))
		return 1;
	bpf_copy_from_user_task(&byte, sizeof(byte), (void *)hold->stack, task, 0);
	return 0;
}

static long hold_step(__u32 round, struct hold *hold)
{
	return step(hold, false);
}

static long end_step(__u32 round, struct hold *hold)
{
	return step(hold, true);
}

/* The current process waits here, in this sleepable program. */
static __always_inline void hold_here(struct task_struct *task, __u64 stack, enum moment moment)
{
	struct hold hold = {.stack = stack};

	begin_hold(&hold, moment);
	bpf_loop(MAX_HOLD_STEPS, hold_step, &hold, 0);
	end_hold(task, &hold, false);
}

static __always_inline void begin_hold_at_end(struct hold *hold, struct heap *heap,
					      enum moment moment, __u64 raised)
{
	hold->moment = moment;
	hold->raised = raised;
	hold->heap = heap->id;
	hold->began_ns = bpf_ktime_get_ns();
	hold->answers = readings;
	hold->until_ns = hold->began_ns + read_within_ns;
}

/* The same at the end of its process. */
static __always_inline void hold_end_here(struct task_struct *task, struct heap *heap, __u64 stack)
{
	struct hold hold = {.stack = stack};

	begin_hold_at_end(&hold, heap, ENDING, 0);
	bpf_loop(MAX_HOLD_STEPS, end_step, &hold, 0);
	/* So many steps may take less time than allowed. */
	if (is_held_at_end(heap))
		give_up_reading(heap, REACH_TOO_LONG);
}

/* ---- in a chain of works --------------------------------------------------------------------- */

/* What one work waits for. */
struct awaited {
	__u64 answers; /* another value of the global than this */
	__u64 until_ns;
	enum moment moment;
};

static long is_it_there(__u32 round, struct awaited *awaited)
{
	__u64 *said = awaited->moment >= ENDING ? &readings : &answers;

	return *(volatile __u64 *)said != awaited->answers || *(volatile __u32 *)&nobody_answers ||
	       bpf_ktime_get_ns() > awaited->until_ns ||
	       (awaited->moment != DYING && is_killed(bpf_get_current_task_btf()));
}

/* Waits awake, for one work. */
static __always_inline void work(struct hold *hold)
{
	struct awaited awaited = {.answers = hold->answers, .moment = hold->moment};

	awaited.until_ns = bpf_ktime_get_ns() + WORK_NS;
	/* Mappings that could not be read are read again at once. */
	if (!hold->unread)
		bpf_loop(MAX_WORK_STEPS, is_it_there, &awaited, 0);
}

/*
 * The current process sleeps if the keeper's mappings are locked. The keeper locks them for some
 * milliseconds at a time, so that whoever reads them sleeps (src/kernel/keeper.rs). If it does not
 * run, they are not locked.
 */
static __always_inline void read_keeper(void)
{
	struct task_struct *task = bpf_task_from_pid(keeper);
	char byte;

	if (!task)
		return;
	bpf_copy_from_user_task(&byte, sizeof(byte), (void *)BPF_CORE_READ(task, mm, start_code),
				task, 0);
	bpf_task_release(task);
}

static __always_inline struct held *entry_of(struct task_struct *task, __u64 at)
{
	struct place place = {.task = (__u64)task, .at = at};

	return bpf_map_lookup_elem(&held, &place);
}

static const struct held no_hold;

static __always_inline struct held *make_entry(struct task_struct *task, __u64 at)
{
	struct place place = {.task = (__u64)task, .at = at};

	if (bpf_map_update_elem(&held, &place, &no_hold, BPF_ANY))
		return 0;
	return bpf_map_lookup_elem(&held, &place);
}

static __always_inline void drop_entries(struct task_struct *task)
{
	struct place place = {.task = (__u64)task};

	for (place.at = 0; place.at < PLACES; place.at++)
		bpf_map_delete_elem(&held, &place);
}

/* The next work of the chain is scheduled, before the current one waits. */
static __always_inline bool schedule_next(struct task_struct *task, struct hold *hold,
					  enum chain chain,
					  int (*callback)(struct bpf_map *, void *, void *))
{
	struct held *next;

	hold->turn ^= 1;
	next = entry_of(task, chain + hold->turn);
	return next && !schedule_resume(task, &next->work, callback);
}

/* Schedules the next work, unless the hold is over. Then everything about it is dropped. */
static __always_inline bool goes_on(struct task_struct *task, struct hold *hold, bool at_end,
				    enum chain chain,
				    int (*callback)(struct bpf_map *, void *, void *))
{
	if (!is_hold_over(hold, at_end) && schedule_next(task, hold, chain, callback))
		return true;
	end_hold(task, hold, at_end);
	drop_entries(task);
	return false;
}

static __always_inline int wait_awake(bool at_end,
				      int (*callback)(struct bpf_map *, void *, void *))
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct held *held = entry_of(task, AWAKE);
	struct hold *hold;
	struct sleeper sleeper = {.pid = task->pid};

	/* The wait is over, or goes on in the other chain. */
	if (!held || held->hold.sleeps)
		return 0;
	hold = &held->hold;
	if (!goes_on(task, hold, at_end, AWAKE, callback))
		return 0;
	if (!hold->asked && bpf_ktime_get_ns() > hold->began_ns + AWAKE_NS) {
		hold->asked =
		    !bpf_ringbuf_output(&sleepers, &sleeper, sizeof(sleeper), BPF_RB_FORCE_WAKEUP);
	}
	work(hold);
	return 0;
}

/* The works of a wait until files are examined. */
static int hold_awake(struct bpf_map *map, void *key, void *value)
{
	return wait_awake(false, hold_awake);
}

/* The works of a wait at the end of a process. */
static int end_awake(struct bpf_map *map, void *key, void *value)
{
	return wait_awake(true, end_awake);
}

/*
 * The same, but the current process sleeps. Programs at uprobes may not do this, so the keeper
 * schedules the first of these works.
 */
static int hold_asleep(struct bpf_map *map, void *key, void *value)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct held *held = entry_of(task, AWAKE);
	struct hold *hold;

	if (!held) {
		drop_entries(task);
		return 0;
	}
	hold = &held->hold;
	if (!hold->sleeps) {
		hold->sleeps = true;
		hold->turn = 0;
	}
	if (!goes_on(task, hold, hold->moment >= ENDING, ASLEEP, hold_asleep))
		return 0;
	last_sleep_ns = bpf_ktime_get_ns();
	if (!hold->unread)
		read_keeper();
	work(hold);
	return 0;
}

/* The process `pid` waits in a chain. From now on it sleeps. */
static __always_inline void let_it_sleep(__u32 pid)
{
	struct task_struct *task = bpf_task_from_pid(pid);
	struct held *held, *first, *second;

	if (!task)
		return;
	held = entry_of(task, AWAKE);
	if (held && !held->hold.called) {
		held->hold.called = true;
		__sync_fetch_and_add(&sleeping, 1);
		second = make_entry(task, ASLEEP + 1);
		first = make_entry(task, ASLEEP);
		if (first && second)
			schedule_resume(task, &first->work, hold_asleep);
	}
	bpf_task_release(task);
}

/* Begins a chain in which the task waits on its way back from the kernel. Returns whether it will.
 */
static __always_inline bool begin_chain(struct task_struct *task, const struct hold *hold,
					int (*callback)(struct bpf_map *, void *, void *))
{
	struct held *second = make_entry(task, AWAKE + 1), *first = make_entry(task, AWAKE);

	if (first && second) {
		first->hold = *hold;
		if (!schedule_resume(task, &first->work, callback))
			return true;
	}
	drop_entries(task);
	return false;
}

/* A thread of a process that ends waits on its way back from the kernel. Returns whether it will.
 */
static __always_inline bool hold_at_end(struct task_struct *task, struct heap *heap,
					enum moment moment, __u64 raised)
{
	struct hold hold = {};

	begin_hold_at_end(&hold, heap, moment, raised);
	return begin_chain(task, &hold, end_awake);
}

/* The current process waits on its way back from the kernel. */
static __always_inline void hold_on_return(struct task_struct *task, enum moment moment)
{
	struct hold hold = {};

	/* If it is killed before the chain begins, it has run nothing. */
	if (moment == EXEC)
		mark_heap(HEAP_LOADING);
	begin_hold(&hold, moment);
	if (begin_chain(task, &hold, hold_awake))
		return;
	leave_loader(moment);
	mark_heap(HEAP_LATE);
}

#endif
