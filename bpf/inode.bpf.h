/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What identifies a file, and the version of its content. */
#ifndef MEMLEAK_INODE_H
#define MEMLEAK_INODE_H

#include "core.h"
#include "memleak.h"

static __always_inline void version_of(struct inode *inode, struct file_version *version)
{
	struct inode___sec *split = (void *)inode;
	struct inode___hidden *hidden = (void *)inode;
	struct inode___plain *plain = (void *)inode;

	if (bpf_core_field_exists(split->i_ctime_sec)) {
		version->changed_sec = BPF_CORE_READ(split, i_ctime_sec);
		version->changed_nsec = BPF_CORE_READ(split, i_ctime_nsec);
	} else if (bpf_core_field_exists(hidden->__i_ctime)) {
		version->changed_sec = BPF_CORE_READ(hidden, __i_ctime.tv_sec);
		version->changed_nsec = BPF_CORE_READ(hidden, __i_ctime.tv_nsec);
	} else {
		version->changed_sec = BPF_CORE_READ(plain, i_ctime.tv_sec);
		version->changed_nsec = BPF_CORE_READ(plain, i_ctime.tv_nsec);
	}
	/* Clears I_CTIME_QUERIED: it says whether the ctime was read since. */
	version->changed_nsec &= ~(1U << 31);
}

static __always_inline void identify_inode(struct inode *inode, struct arrival *arrival)
{
	arrival->file.inode = BPF_CORE_READ(inode, i_ino);
	arrival->file.device = BPF_CORE_READ(inode, i_sb, s_dev);
	version_of(inode, &arrival->version);
}

#endif
