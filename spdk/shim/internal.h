/* SPDX-License-Identifier: BSD-3-Clause
 * Shared by the shim's C files only. */
#ifndef SDM_INTERNAL_H
#define SDM_INTERNAL_H

#include "spdk/bdev_module.h"

/* The thread that ran module_init: registering and unregistering happen there in every version. */
extern struct spdk_thread *g_sdm_app_thread;
extern struct spdk_bdev_module g_sdm_module;

struct sdm_desc {
	struct spdk_bdev_desc *desc;
	struct spdk_bdev *bdev;
	void (*event)(void *, int);
	void *ctx;
	bool claimed;
};

static inline struct spdk_bdev_desc *
sdm_desc_raw(void *desc)
{
	return ((struct sdm_desc *)desc)->desc;
}

/* Bytes of the module's part of an I/O. */
int sdm_io_ctx_size(void);

/* Flushes all of a bdev, for real: see base.c. */
int sdm_submit_flush(struct spdk_bdev_desc *desc, struct spdk_io_channel *channel,
		     spdk_bdev_io_completion_cb cb, void *arg);

#endif
