/* SPDX-License-Identifier: BSD-3-Clause
 * Virtual bdevs implemented in Rust: how they are registered, described, and given channels. */
#include "shim.h"

#include "spdk/stdinc.h"
#include "spdk/bdev_module.h"
#include "spdk/thread.h"
#include "internal.h"
#include "vbdev.h"

static int
channel_create(void *io_device, void *ctx_buf)
{
	struct vbdev *vb = io_device;
	struct vbdev_channel *channel = ctx_buf;

	channel->vbdev = vb;
	channel->plain = vb->ops->plain;
	channel->value = vb->ops->channel_create(vb->ctx);
	if (channel->value == NULL) {
		return -ENOMEM;
	}
	vb->ops->passage(channel->value, &channel->passage);
	return 0;
}

static void
channel_destroy(void *io_device, void *ctx_buf)
{
	struct vbdev_channel *channel = ctx_buf;

	channel->vbdev->ops->channel_destroy(channel->value);
}

static void
channels_gone(void *io_device)
{
	struct vbdev *vb = io_device;

	vb->ops->destruct(vb->ctx);
}

static int
vbdev_destruct(void *ctx)
{
	spdk_io_device_unregister(ctx, channels_gone);
	return 1;
}

void
sdm_vbdev_destructed(void *vbdev)
{
	struct vbdev *vb = vbdev;
	char *name = vb->bdev.name, *product = vb->bdev.product_name;

	spdk_bdev_destruct_done(&vb->bdev, 0);
	free(name);
	free(product);
	free(vb);
}

static bool
vbdev_io_type_supported(void *ctx, enum spdk_bdev_io_type type)
{
	struct vbdev *vb = ctx;
	int kind = sdm_kind_of(type);

	return kind != SDM_OTHER && (vb->ops->io_kinds(vb->ctx) & (1u << kind)) != 0;
}

static struct spdk_io_channel *
vbdev_get_io_channel(void *ctx)
{
	return spdk_get_io_channel(ctx);
}

static int
vbdev_dump_info(void *ctx, struct spdk_json_write_ctx *w)
{
	struct vbdev *vb = ctx;

	vb->ops->dump_info(vb->ctx, w);
	return 0;
}

static void
vbdev_write_config(struct spdk_bdev *bdev, struct spdk_json_write_ctx *w)
{
	struct vbdev *vb = bdev->ctxt;

	vb->ops->write_config(vb->ctx, w);
}

static const struct spdk_bdev_fn_table fn_table = {
	.destruct = vbdev_destruct,
	.submit_request = sdm_vbdev_submit,
	.io_type_supported = vbdev_io_type_supported,
	.get_io_channel = vbdev_get_io_channel,
	.dump_info_json = vbdev_dump_info,
	.write_config_json = vbdev_write_config,
};

void *
sdm_vbdev_register(const struct sdm_vbdev_params *params, const struct sdm_vbdev_ops *ops, void *ctx, int *rc)
{
	struct vbdev *vb = calloc(1, sizeof(*vb));

	*rc = -ENOMEM;
	if (vb == NULL) {
		return NULL;
	}
	vb->ops = ops;
	vb->ctx = ctx;
	vb->bdev.name = strdup(params->name);
	vb->bdev.product_name = strdup(params->product_name);
	if (vb->bdev.name == NULL || vb->bdev.product_name == NULL) {
		goto fail;
	}
	vb->divides_at_blocks = params->divides_at_blocks;
	vb->bdev.ctxt = vb;
	vb->bdev.fn_table = &fn_table;
	vb->bdev.module = &g_sdm_module;
	vb->bdev.blocklen = params->block_bytes;
	vb->bdev.blockcnt = params->nr_blocks;
	vb->bdev.write_cache = params->write_cache;
	vb->bdev.optimal_io_boundary = params->optimal_boundary_blocks;
	vb->bdev.split_on_optimal_io_boundary = params->optimal_boundary_blocks != 0;
	memcpy(&vb->bdev.uuid, params->uuid, sizeof(params->uuid));
	spdk_io_device_register(vb, channel_create, channel_destroy, sizeof(struct vbdev_channel), params->name);
	*rc = spdk_bdev_register(&vb->bdev);
	if (*rc == 0) {
		return vb;
	}
	spdk_io_device_unregister(vb, NULL);
fail:
	free(vb->bdev.name);
	free(vb->bdev.product_name);
	free(vb);
	return NULL;
}

void
sdm_vbdev_unregister(void *vbdev, void (*done)(void *, int), void *ctx)
{
	struct vbdev *vb = vbdev;

	spdk_bdev_unregister(&vb->bdev, done, ctx);
}

int
sdm_vbdev_resize(void *vbdev, uint64_t nr_blocks)
{
	struct vbdev *vb = vbdev;

	return spdk_bdev_notify_blockcnt_change(&vb->bdev, nr_blocks);
}
