/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Processes that are there before they are followed: which of them are wanted, and how they come to
 * a heap. A process gets its heap when memleak starts or, where the filters have come to want it
 * since, at its next call of an allocator. Each thread joins by itself, at its own next call:
 * nobody but the thread ever writes to its counters.
 */
#ifndef MEMLEAK_JOIN_H
#define MEMLEAK_JOIN_H

#include "lifecycle.bpf.h"

/* The id of a group's ancestor at a level that is not below the group's own. */
static __always_inline __u64 ancestor_id(struct cgroup *group, __u64 level)
{
	struct cgroup___ids *ids = (void *)group;
	struct cgroup *ancestor = 0;
	__u64 id = 0;

	/* The barriers keep what the other kind of kernel cannot do in the branch that it does not
	 * take. */
	if (bpf_core_field_exists(group->ancestors)) {
		barrier_var(group);
		bpf_probe_read_kernel(&ancestor, sizeof(ancestor), &group->ancestors[level]);
		id = BPF_CORE_READ(ancestor, kn, id);
	} else {
		barrier_var(ids);
		bpf_probe_read_kernel(&id, sizeof(id), &ids->ancestor_ids[level]);
	}
	return id;
}

/* Whether the task is in one of the control groups that were named, or below. */
static __always_inline bool in_wanted_cgroup(struct task_struct *task)
{
	struct cgroup *group = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	__u64 level;
	__u32 i;

	for (i = 0; i < MAX_CGROUPS && i < cgroup_count; i++) {
		level = wanted_cgroups[i].level;
		if (BPF_CORE_READ(group, level) >= (int)level &&
		    ancestor_id(group, level) == wanted_cgroups[i].id)
			return true;
	}
	return false;
}

/* Whether a process is not to be reported, though it is followed for the sake of its children. */
static __always_inline bool is_outside(struct task_struct *task)
{
	return scope == SCOPE_CHOSEN && cgroup_count && !in_wanted_cgroup(task);
}

static __always_inline bool has_wanted_name(struct task_struct *leader)
{
	struct name_automaton *names;
	char comm[COMM_LEN] = {};
	__u32 zero = 0, state = 0;
	int i;

	names = bpf_map_lookup_elem(&wanted_names, &zero);
	if (!names)
		return true;
	bpf_core_read(comm, sizeof(comm), &leader->comm);
	for (i = 0; i < COMM_LEN; i++) {
		state = names->next[state & (NAME_STATES - 1)][(__u8)comm[i]];
		if (!comm[i])
			break;
	}
	return state;
}

/* Whether a process is to be followed, as it is at the moment; where all are but for the filters.
 */
static __always_inline bool is_wanted(struct task_struct *task, struct task_struct *leader)
{
	__u32 uid;

	if (task_field(task, tgid) == keeper || task_field(task, flags) & PF_KTHREAD)
		return false;
	if (by_uid) {
		uid = BPF_CORE_READ(task, real_cred, uid.val);
		if (!bpf_map_lookup_elem(&wanted_uids, &uid))
			return false;
	}
	if (cgroup_count && !in_wanted_cgroup(task))
		return false;
	return !by_name || has_wanted_name(leader);
}

/* The program that a process executes: its name and those of the directories that it lies in. */
static __always_inline void name_running_exe(struct heap *heap, struct task_struct *task)
{
	struct file *file = BPF_CORE_READ(task, mm, exe_file);
	struct walk walk = {};

	if (!file)
		return;
	walk.dentry = BPF_CORE_READ(file, f_path.dentry);
	walk.mnt = BPF_CORE_READ(file, f_path.mnt);
	walk.root_dentry = BPF_CORE_READ(task, fs, root.dentry);
	walk.root_mnt = BPF_CORE_READ(task, fs, root.mnt);
	heap->flags |= HEAP_EXE_RELATIVE;
	walk_up(heap, &walk);
}

/* The id of a new heap of a process that is there, which is its one user; 0 if that cannot be. */
static __always_inline __u64 heap_of_running(struct task_struct *task, struct task_struct *leader)
{
	struct heap *heap = new_heap();
	struct found_files *files;

	if (!heap)
		return 0;
	heap->start_ns = BPF_CORE_READ(leader, start_time);
	heap->pid = own_pid_of(leader);
	heap->ppid = own_pid_of(BPF_CORE_READ(leader, real_parent, group_leader));
	heap->flags = HEAP_ATTACHED | HEAP_PROCESS;
	if (BPF_CORE_READ(leader, exit_state)) {
		heap->flags |= HEAP_LEADER_GONE;
		bpf_core_read(heap->comm, COMM_LEN, &leader->comm);
	}
	name_running_exe(heap, task);
	files = bpf_map_lookup_elem(&found, &heap->pid);
	if (files) {
		heap->file_count = files->count;
		__builtin_memcpy(heap->files, files->files, sizeof(heap->files));
	}
	expect_joins(heap, leader);
	start_heap(heap);
	return heap->id;
}

/*
 * The heap of a process that is there; made if it has none and is wanted. `leader` is that of
 * `task`, who is any of its threads.
 */
static __always_inline __u64 adopt(struct task_struct *task, struct task_struct *leader)
{
	__u64 id, first;

	/* First, for the sake of those who are not: they come here with each call. */
	if (scope == SCOPE_CHOSEN && !is_chosen(leader))
		return 0;
	id = heap_of_process(leader);
	if (id)
		return id;
	if (scope == SCOPE_ALL && !is_wanted(task, leader))
		return 0;
	id = heap_of_running(task, leader);
	if (!id)
		return 0;
	first = claim_process(leader, id);
	if (first != id)
		drop_heap(id);
	return first;
}

/*
 * The current thread joins the heap of its process, if that is followed, or is to be. Returns
 * whether it did.
 */
FUNCTION int join(void)
{
	struct task_struct *task = current_task(), *leader;
	struct thread *thread;
	struct heap *heap;
	__u64 id;

	/* Until its exec, a child of vfork uses the memory of its parent, who waits. */
	if (!joining || task_field(task, vfork_done))
		return 0;
	leader = task_field(task, group_leader);
	id = adopt(task, leader);
	heap = id ? heap_by_id(id) : 0;
	if (!heap || heap->flags & HEAP_OWNER_GONE)
		return 0;
	thread = thread_of(task);
	if (!thread)
		thread = new_thread(task);
	if (!thread)
		return 0;
	__sync_fetch_and_add(&heap->users, 1);
	__sync_fetch_and_add(&heap->owners, 1);
	thread->pid = heap->pid;
	thread->ppid = heap->ppid;
	thread->image = 0;
	enter_heap(thread, id, false);
	joined(thread, heap, BPF_CORE_READ(task, signal, live.counter) == 1);
	if (!heap->file_count)
		survey_of(task, heap, false);
	knows_files(thread, heap);
	return 1;
}

/* Whether the task is the current one and leads a process that has a heap which it has not joined.
 */
static __always_inline bool may_join(struct task_struct *task)
{
	if (scope == SCOPE_TREE || task_field(task, pid) != task_field(task, tgid) ||
	    (__u64)task != (__u64)current_task())
		return false;
	return heap_of_process(task);
}

/* Gives every process that is there and wanted its heap, before any of its threads has joined. */
SEC("iter/task")
int adopt_all(struct bpf_iter__task *ctx)
{
	struct task_struct *leader = ctx->task;
	struct heap *heap;
	__u64 id;

	if (!leader || leader->pid != leader->tgid)
		return 0;
	/* One that has ended has told of its end already, or was not followed until then. */
	if (!BPF_CORE_READ(leader, signal, live.counter) || thread_of(leader))
		return 0;
	if (heap_of_process(leader))
		return 0;
	id = adopt(leader, leader);
	heap = id ? heap_by_id(id) : 0;
	if (heap)
		survey_of(leader, heap, false);
	return 0;
}

#endif
