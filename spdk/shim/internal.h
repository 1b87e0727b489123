/* SPDX-License-Identifier: BSD-3-Clause
 * Shared by the shim's C files only. */
#ifndef SDM_INTERNAL_H
#define SDM_INTERNAL_H

#include "spdk/bdev_module.h"

/* The thread that ran module_init: registering and unregistering happen there in every version. */
extern struct spdk_thread *g_sdm_app_thread;
extern struct spdk_bdev_module g_sdm_module;

#endif
