/* SPDX-License-Identifier: BSD-3-Clause
 * What the I/O of virtual bdevs and their registration know of each other. */
#ifndef SDM_VBDEV_H
#define SDM_VBDEV_H

#include "spdk/stdinc.h"
#include "spdk/bdev_module.h"
#include "shim.h"

struct vbdev {
	struct spdk_bdev bdev;
	const struct sdm_vbdev_ops *ops;
	void *ctx;
	uint32_t divides_at_blocks;
};

struct vbdev_channel {
	struct vbdev *vbdev;
	void *value;
	/* ops->plain */
	struct sdm_course (*plain)(void *, int, uint64_t, uint64_t);
	struct sdm_passage passage;
};

/* SDM_OTHER: it is not taken. */
int sdm_kind_of(enum spdk_bdev_io_type type);

/* Takes an I/O of a virtual bdev. */
void sdm_vbdev_submit(struct spdk_io_channel *ch, struct spdk_bdev_io *io);

#endif
