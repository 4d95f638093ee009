/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which processes are followed, and which of those are reported. */
#ifndef MEMLEAK_WANTED_H
#define MEMLEAK_WANTED_H

#include "core.h"
#include "kernels.bpf.h"
#include "maps.bpf.h"
#include "memleak.h"

/* The id of a group's ancestor, at a level that is not below the group's own. */
static __always_inline __u64 ancestor_id(struct cgroup *group, __u64 level)
{
	struct cgroup___ids *ids = (void *)group;
	struct cgroup *ancestor = 0;
	__u64 id = 0;

	/*
	 * The barriers keep the code for the other kernels within the branch that this kernel does
	 * not take.
	 */
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

/* The control group (version 2) of a task, as its file has it for its inode. */
static __always_inline __u64 cgroup_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
}

/* Whether the task is in one of the control groups that were named, or below one. */
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

/* Whether a process is followed only for the sake of its children, and is not reported. */
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

/*
 * Whether a process is memleak's keeper: a child that has executed nothing, and has a name that
 * begins as memleak's. Other children of memleak's were there before it was executed, or were
 * adopted by it.
 */
static __always_inline bool is_keeper(struct task_struct *leader)
{
	char comm[COMM_LEN];

	if (BPF_CORE_READ(leader, real_parent, tgid) != memleak_tgid ||
	    !(BPF_CORE_READ(leader, flags) & PF_FORKNOEXEC))
		return false;
	bpf_core_read(comm, sizeof(comm), &leader->comm);
	return comm[0] == 'm' && comm[1] == 'e' && comm[2] == 'm' && comm[3] == 'l' &&
	       comm[4] == 'e' && comm[5] == 'a' && comm[6] == 'k';
}

/* Whether the filters want a process, as it is now. For SCOPE_ALL. */
static __always_inline bool is_wanted(struct task_struct *task, struct task_struct *leader)
{
	__u32 uid;

	if (task_field(task, tgid) == memleak_tgid || task_field(task, flags) & PF_KTHREAD ||
	    is_keeper(leader))
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

#endif
