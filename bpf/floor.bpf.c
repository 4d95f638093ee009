// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Programs that do nothing, to be attached just as the counting ones are: what remains of a call's
 * price with them is the kernel's, and the least that any tool with probes at these places can
 * cost.
 */
#include "core.h"

char LICENSE[] SEC("license") = "GPL";

SEC("uprobe.session")
int alloc_session(struct pt_regs *ctx)
{
	return 0;
}

SEC("uprobe.multi")
int entry_only(struct pt_regs *ctx)
{
	return 0;
}
