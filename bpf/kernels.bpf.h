/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The kernels that the object is for: what newer.bpf.h has, or what stands in for it on older ones.
 */
#ifndef MEMLEAK_KERNELS_H
#define MEMLEAK_KERNELS_H

#ifdef OLDER_KERNELS
#include "older.bpf.h"
#else
#include "newer.bpf.h"
#endif

#endif
