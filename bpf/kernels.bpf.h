/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Selects the kernels that the object is for: newer.bpf.h, or its stand-ins in older.bpf.h. */
#ifndef MEMLEAK_KERNELS_H
#define MEMLEAK_KERNELS_H

#ifdef OLDER_KERNELS
#include "older.bpf.h"
#else
#include "newer.bpf.h"
#endif

#endif
