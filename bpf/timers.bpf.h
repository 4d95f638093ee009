/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether a timer, or a limit of processor time, would send the current process a signal if it were
 * held for some time. Only timers that send signals matter: what waits for the others is not the
 * process.
 */
#ifndef MEMLEAK_TIMERS_H
#define MEMLEAK_TIMERS_H

#include "core.h"

/* More timers of timer_create(2) are not looked at: then one of them may expire. */
#define MAX_TIMERS 64

/* include/uapi/linux/time.h: clocks that wake the machine. Their timers are of another kind. */
enum { CLOCK_REALTIME_ALARM = 8, CLOCK_BOOTTIME_ALARM = 9 };

/* Whether a timer waits for its time. */
static __always_inline bool is_queued(struct hrtimer *timer)
{
	struct hrtimer___queued *newer = (void *)timer;

	if (bpf_core_field_exists(newer->is_queued))
		return BPF_CORE_READ(newer, is_queued);
	return BPF_CORE_READ(timer, node.node.__rb_parent_color) !=
	       (unsigned long)timer + bpf_core_field_offset(timer->node.node);
}

static __always_inline bool is_due(struct hrtimer *timer, __u64 until_ns)
{
	__s64 expires, offset;

	if (!is_queued(timer))
		return false;
	expires = BPF_CORE_READ(timer, node.expires);
	offset = BPF_CORE_READ(timer, base, offset);
	return expires - offset < (__s64)until_ns;
}

/* Processor time, in ns. The kernel notes in `nextevt` when a timer of it, or a limit, is due. */
static __always_inline bool uses_up(struct posix_cputimers *timers, __u64 ns)
{
	return BPF_CORE_READ(timers, bases[0].nextevt) < ns ||
	       BPF_CORE_READ(timers, bases[1].nextevt) < ns ||
	       BPF_CORE_READ(timers, bases[2].nextevt) < ns;
}

struct timer_walk {
	struct hlist_node *next;
	__u64 until_ns;
	bool due;
};

static long look_at_timer(__u32 round, struct timer_walk *walk)
{
	struct hlist_node *node = walk->next;
	struct k_itimer *timer = 0;
	int clock;

	if (!node)
		return 1;
	timer = (void *)node - bpf_core_field_offset(timer->list);
	clock = BPF_CORE_READ(timer, it_clock);
	if (clock == CLOCK_REALTIME_ALARM || clock == CLOCK_BOOTTIME_ALARM)
		walk->due = true;
	/* Negative: processor time, which is looked at elsewhere. */
	else if (clock >= 0)
		walk->due = is_due(&timer->it.real.timer, walk->until_ns);
	walk->next = BPF_CORE_READ(node, next);
	return walk->due;
}

/* Whether the current process would get a signal within `ns` nanoseconds. */
static __always_inline bool may_expire_within(struct task_struct *task, __u64 ns)
{
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct timer_walk walk = {.until_ns = bpf_ktime_get_ns() + ns};
	__u64 own_ns = BPF_CORE_READ(task, se.sum_exec_runtime);
	__u64 used_ns = BPF_CORE_READ(signal, sum_sched_runtime) + own_ns;
	__u64 all_ns = BPF_CORE_READ(signal, cputimer.cputime_atomic.sum_exec_runtime.counter);

	if (is_due(&signal->real_timer, walk.until_ns))
		return true;
	if (uses_up(&task->posix_cputimers, own_ns + ns))
		return true;
	if (uses_up(&signal->posix_cputimers, (used_ns > all_ns ? used_ns : all_ns) + ns))
		return true;
	walk.next = BPF_CORE_READ(signal, posix_timers.first);
	bpf_loop(MAX_TIMERS, look_at_timer, &walk, 0);
	return walk.due || walk.next;
}

#endif
