// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A program that does nothing. It names no type and no function of the kernel, so that libbpf need
 * not read the kernel's type information.
 */
#include "core.h"

char LICENSE[] SEC("license") = "GPL";

SEC("uprobe.multi")
int entry_only(struct pt_regs *ctx)
{
	return 0;
}
