/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The few kernel types that the programs read, for CO-RE. Every struct names only the fields that
 * are used. The loader finds their real places in the running kernel's BTF. This file has only
 * types of the kernel. The types that are sent to user space are in memleak.h.
 */
#ifndef MEMLEAK_CORE_H
#define MEMLEAK_CORE_H

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false, true };

/* include/uapi/linux/bpf.h: the values used here. */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_EXIST = 2 };
enum { BPF_F_NO_PREALLOC = 1, BPF_F_MMAPABLE = 1024 };
enum { BPF_F_USER_STACK = 1 << 8, BPF_F_FAST_STACK_CMP = 1 << 9 };
enum { BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2 };
enum { BPF_RB_AVAIL_DATA = 0 };

/*
 * Opaque to programs: an object in a map, by which the kernel calls back in a task's own context.
 */
struct bpf_task_work {
	__u64 __opaque;
} __attribute__((aligned(8)));
struct bpf_iter_task_vma {
	__u64 __opaque[1];
} __attribute__((aligned(8)));

/* include/uapi/asm-generic/errno-base.h */
enum { ENOENT = 2, EBUSY = 16 };

/* include/uapi/linux/sched.h */
enum { CLONE_VM = 0x00000100, CLONE_THREAD = 0x00010000 };

/* include/linux/sched/signal.h */
enum { SIGNAL_GROUP_EXIT = 0x00000004, SIGNAL_UNKILLABLE = 0x00000040 };

/* include/linux/sched.h */
enum { PF_EXITING = 0x00000004, PF_FORKNOEXEC = 0x00000040, PF_KTHREAD = 0x00200000 };

/* include/uapi/linux/sched.h */
enum { SCHED_FIFO = 1, SCHED_RR = 2, SCHED_DEADLINE = 6 };

/* include/linux/sched/jobctl.h: a stop, a tracer's trap, or the freezer of a control group. */
enum { JOBCTL_PENDING = 0x00020000 | 0x00080000 | 0x00100000 | 0x00800000 };

/* include/uapi/asm-generic/signal.h */
enum { SIGKILL = 9 };

/* include/uapi/linux/auxvec.h */
enum { AT_NULL = 0, AT_BASE = 7 };

/* include/uapi/linux/stat.h */
enum { S_IFMT = 0170000, S_IFREG = 0100000 };

/* include/linux/mm.h */
enum { VM_EXEC = 0x00000004 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip,
	    cs, flags, sp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
struct pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
#endif

struct pid_namespace;

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

typedef struct {
	__u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	unsigned long sig[1];
} sigset_t;

struct sigpending {
	sigset_t signal;
};

struct rb_node {
	unsigned long __rb_parent_color; /* of a node that is in no tree: its own address */
	struct rb_node *rb_left, *rb_right;
};

struct timerqueue_node {
	struct rb_node node;
	__s64 expires;
};

struct hrtimer_clock_base {
	__s64 offset; /* of the clock, to CLOCK_MONOTONIC */
};

struct hrtimer {
	struct timerqueue_node node; /* `expires` in the time of its clock */
	struct hrtimer_clock_base *base;
};

/* Since 7.2 a timer says itself whether it is in a tree. */
struct hrtimer___queued {
	_Bool is_queued;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

/* A timer of timer_create(2). */
struct k_itimer {
	struct hlist_node list;
	int it_clock;
	union {
		struct {
			struct hrtimer timer;
		} real;
	} it;
};

typedef struct {
	__s64 counter;
} atomic64_t;

/* What all threads have used, in ns, if some timer or limit needs it. */
struct task_cputime_atomic {
	atomic64_t sum_exec_runtime;
};

struct thread_group_cputimer {
	struct task_cputime_atomic cputime_atomic;
};

/* Timers that expire when the process has used so much processor time, in ns. */
struct posix_cputimer_base {
	__u64 nextevt;
};

struct posix_cputimers {
	struct posix_cputimer_base bases[3];
};

struct task_struct;
struct signal_struct {
	atomic_t live; /* threads that have not begun to exit */
	int nr_threads;
	unsigned int flags;
	int group_exit_code;
	struct sigpending shared_pending;
	struct task_struct *group_exec_task;
	struct hlist_head posix_timers;
	struct hrtimer real_timer;
	struct thread_group_cputimer cputimer;
	struct posix_cputimers posix_cputimers;
	unsigned long long sum_sched_runtime; /* of threads that have ended, in ns */
};

struct sigaction {
	void *sa_handler;
};

struct k_sigaction {
	struct sigaction sa;
};

struct sighand_struct {
	struct k_sigaction action[64];
};

struct sched_entity {
	__u64 sum_exec_runtime; /* in ns */
};

struct kernel_siginfo {
	int si_code;
};

#if defined(__TARGET_ARCH_x86)
struct thread_struct {
	unsigned long fsbase;
};
#endif

/* Before 5.17. */
struct signal_struct___exit {
	struct task_struct *group_exit_task;
};

struct qstr {
	const unsigned char *name;
};

struct hlist_bl_node {
	struct hlist_bl_node **pprev;
};

struct dentry {
	struct hlist_bl_node d_hash;
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct fs_struct {
	struct path root, pwd;
};

/* kernel/events/uprobes.c: where a process's return trampoline is. */
struct xol_area {
	unsigned long vaddr;
};

struct uprobes_state {
	struct xol_area *xol_area;
};

/* The calls of a task whose return is probed, the innermost first. */
struct return_instance {
	unsigned long stack; /* where the return address was */
	unsigned long orig_ret_vaddr;
	struct return_instance *next;
};

struct uprobe_task {
	struct return_instance *return_instances;
};

struct mm_struct {
	unsigned long total_vm, exec_vm; /* in pages */
	int map_count;
	struct uprobes_state uprobes_state;
	unsigned long start_code;
	unsigned long arg_start, arg_end, env_start, env_end;
	unsigned long saved_auxv[2]; /* longer: AT_VECTOR_SIZE */
	struct file *exe_file;
};

/* Changes whenever the mappings do (since 6.4; since 6.14 it is a sequence counter). */
typedef struct seqcount {
	unsigned int sequence;
} seqcount_t;

struct mm_struct___counted {
	seqcount_t mm_lock_seq;
};

struct mm_struct___numbered {
	int mm_lock_seq;
};

struct super_block {
	__u32 s_dev;
};

struct inode {
	__u16 i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	__u32 i_generation;
};

/* When an inode was last changed. The field has three names: since 6.11, since 6.6, and before. */
struct inode___sec {
	__s64 i_ctime_sec;
	__u32 i_ctime_nsec;
};

struct timespec64 {
	__s64 tv_sec;
	long tv_nsec;
};

struct inode___hidden {
	struct timespec64 __i_ctime;
};

struct inode___plain {
	struct timespec64 i_ctime;
};

struct file {
	struct inode *f_inode;
	struct path f_path;
};

struct vm_area_struct {
	unsigned long vm_start, vm_end;
	unsigned long vm_flags;
	unsigned long vm_pgoff;
	struct file *vm_file;
};

/* Before 6.1: a process's mappings, as a tree ordered by address. */
struct rb_root {
	struct rb_node *rb_node;
};

struct mm_struct___tree {
	struct rb_root mm_rb;
};

struct vm_area_struct___tree {
	struct rb_node vm_rb;
};

/* Only its name is needed, for a prototype of a kernel function. */
struct bpf_map {
	__u32 id;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup *ancestors[1];
};

/* Before 6.1. */
struct cgroup___ids {
	__u64 ancestor_ids[1];
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct completion;

struct task_struct {
	unsigned int flags;
	int exit_state;
	int pid;
	int tgid;
	int exit_code;
	__u64 start_time;   /* CLOCK_MONOTONIC */
	__u64 self_exec_id; /* changes with each exec */
	struct completion *vfork_done;
	struct css_set *cgroups;
	char comm[16];
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct signal_struct *signal;
	struct mm_struct *mm;
	struct uprobe_task *utask;
	struct fs_struct *fs;
	const struct cred *real_cred;
	int on_cpu;
	unsigned int policy;
	unsigned int ptrace;
	unsigned long jobctl;
	struct sched_entity se;
	struct posix_cputimers posix_cputimers;
	struct sighand_struct *sighand;
	sigset_t blocked;
	struct sigpending pending;
#if defined(__TARGET_ARCH_x86)
	struct thread_struct thread;
#endif
	unsigned long sas_ss_sp;
	__u64 sas_ss_size;
};

struct linux_binprm {
	const char *filename;
};

/* kernel/bpf/hashtab.c: a hash table. */
struct bpf_htab {
	void *buckets;
	unsigned int n_buckets; /* a power of two */
	unsigned int hashrnd;
};

#pragma clang attribute pop

/* Context of a task iterator (include/linux/bpf.h, bpf_iter__task). */
struct seq_file;
struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} __attribute__((preserve_access_index));
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __attribute__((preserve_access_index));

/* Makes libbpf's macros use the kernel's names for registers, as above. */
#define __VMLINUX_H__
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#endif
