// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Programs that do nothing, attached in the same way as the counting ones. With them, a call costs
 * only what the kernel needs. Any tool with probes at these places costs at least as much.
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
