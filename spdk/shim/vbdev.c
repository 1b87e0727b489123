/* SPDX-License-Identifier: BSD-3-Clause
 * Virtual bdevs implemented in Rust. The forward path allocates nothing: its state lives in the
 * driver's part of the spdk_bdev_io. */
#include "shim.h"

#include "spdk/stdinc.h"
#include "spdk/bdev_module.h"
#include "spdk/likely.h"
#include "spdk/log.h"
#include "spdk/thread.h"
#include "spdk/version.h"
#include "internal.h"

struct vbdev {
	struct spdk_bdev bdev;
	const struct sdm_vbdev_ops *ops;
	void *ctx;
	bool buffers_first;
};

struct vbdev_channel {
	struct vbdev *vbdev;
	void *value;
	struct sdm_passage passage;
};

struct io_ctx {
	struct vbdev_channel *channel;
	const struct sdm_way *way;
	uint64_t offset;
	uint64_t ticket;
	/* another way than the base device's, where the driver has set one */
	const struct sdm_way *other;
	/* 0, or of a read whose head alone is forwarded: */
	uint64_t head_blocks;
	struct iovec *head_iovs;
	int head_iovcnt;
	struct spdk_bdev_io_wait_entry wait;
};

static struct io_ctx *
ctx_of(struct spdk_bdev_io *io)
{
	return (struct io_ctx *)io->driver_ctx;
}

int
sdm_io_ctx_size(void)
{
	return sizeof(struct io_ctx);
}

static int
kind_of(enum spdk_bdev_io_type type)
{
	switch (type) {
	case SPDK_BDEV_IO_TYPE_READ:
		return SDM_READ;
	case SPDK_BDEV_IO_TYPE_WRITE:
		return SDM_WRITE;
	case SPDK_BDEV_IO_TYPE_FLUSH:
		return SDM_FLUSH;
	case SPDK_BDEV_IO_TYPE_UNMAP:
		return SDM_UNMAP;
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
		return SDM_WRITE_ZEROES;
	case SPDK_BDEV_IO_TYPE_RESET:
		return SDM_RESET;
	case SPDK_BDEV_IO_TYPE_ABORT:
		return SDM_ABORT;
	default:
		return SDM_OTHER;
	}
}

static bool
needs_buf(struct spdk_bdev_io *io)
{
	return io->u.bdev.iovs == NULL || io->u.bdev.iovs[0].iov_base == NULL;
}

static void vbdev_submit(struct spdk_io_channel *ch, struct spdk_bdev_io *io);
static void forward(struct spdk_bdev_io *io, const struct sdm_way *way, uint64_t offset_blocks,
		    uint64_t head_blocks, uint64_t ticket);

static bool
passes_now(struct vbdev_channel *channel, int kind)
{
	struct sdm_passage *passage = &channel->passage;

	if (passage->version != NULL &&
	    spdk_unlikely(__atomic_load_n(passage->version, __ATOMIC_ACQUIRE) != passage->seen)) {
		channel->vbdev->ops->passage(channel->value, passage);
	}
	return passage->kinds >> kind & 1;
}

static inline void
forward_counted(struct spdk_bdev_io *io, const struct sdm_way *way, uint64_t offset_blocks)
{
	way->in_flight->count++;
	forward(io, way, offset_blocks, 0, way->in_flight->epoch << 1);
}

static void
submit_got_buf(struct spdk_io_channel *ch, struct spdk_bdev_io *io, bool success)
{
	if (!success) {
		spdk_bdev_io_complete(io, SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
	vbdev_submit(ch, io);
}

static void
vbdev_submit(struct spdk_io_channel *ch, struct spdk_bdev_io *io)
{
	struct vbdev_channel *channel = spdk_io_channel_get_ctx(ch);
	const struct sdm_vbdev_ops *ops = channel->vbdev->ops;
	int kind = kind_of(io->type);
	bool passes = passes_now(channel, kind);
	struct sdm_course course;

	if (spdk_unlikely(channel->vbdev->buffers_first && kind == SDM_READ && needs_buf(io))) {
		spdk_bdev_io_get_buf(io, submit_got_buf, io->u.bdev.num_blocks * io->bdev->blocklen);
		return;
	}
	ctx_of(io)->channel = channel;
	if (passes) {
		forward_counted(io, channel->passage.way, io->u.bdev.offset_blocks);
		return;
	}
	if (kind <= SDM_WRITE && ops->plain != NULL) {
		course = ops->plain(channel->value, kind, io->u.bdev.offset_blocks, io->u.bdev.num_blocks);
		if (spdk_likely(course.way != NULL)) {
			forward_counted(io, course.way, course.offset_blocks);
			return;
		}
	}
	ctx_of(io)->other = NULL;
	ops->submit(channel->value, io, kind,
		    kind < SDM_RESET ? io->u.bdev.offset_blocks : 0, kind < SDM_RESET ? io->u.bdev.num_blocks : 0);
}

static void
forward_finish(struct spdk_bdev_io *io, bool success)
{
	struct io_ctx *ctx = ctx_of(io);
	struct vbdev_channel *channel = ctx->channel;
	struct sdm_in_flight *in_flight = ctx->way->in_flight;

	if (spdk_unlikely(ctx->head_blocks != 0)) {
		free(ctx->head_iovs);
	}
	/* Nobody waits for the end of its epoch, and nothing else is to be done with it. */
	if (spdk_likely(in_flight != NULL && ctx->ticket == in_flight->epoch << 1)) {
		in_flight->count--;
		spdk_bdev_io_complete(io, success ? SPDK_BDEV_IO_STATUS_SUCCESS : SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
	channel->vbdev->ops->forwarded(channel->value, io, ctx->ticket, success);
}

static void
forward_done(struct spdk_bdev_io *base_io, bool success, void *arg)
{
	struct spdk_bdev_io *io = arg;

	spdk_bdev_free_io(base_io);
	forward_finish(io, success);
}

static void forward_again(void *arg);

/* Waits for the base bdev to have room, or fails. */
static void __attribute__((noinline, cold))
forward_refused(struct spdk_bdev_io *io, int rc)
{
	struct io_ctx *ctx = ctx_of(io);
	struct spdk_bdev *base;

	if (rc == -ENOMEM) {
		base = spdk_bdev_desc_get_bdev(ctx->way->spdk_desc);
		ctx->wait.bdev = base;
		ctx->wait.cb_fn = forward_again;
		ctx->wait.cb_arg = io;
		rc = spdk_bdev_queue_io_wait(base, ctx->way->channel, &ctx->wait);
	}
	if (rc != 0) {
		forward_finish(io, false);
	}
}

/* All but whole reads and writes. */
static int __attribute__((noinline))
submit_other(struct spdk_bdev_io *io, const struct sdm_way *way)
{
	struct io_ctx *ctx = ctx_of(io);
	struct spdk_bdev_desc *desc = way->spdk_desc;
	struct spdk_io_channel *channel = way->channel;

	switch (io->type) {
	case SPDK_BDEV_IO_TYPE_READ:
		return spdk_bdev_readv_blocks(desc, channel, ctx->head_iovs, ctx->head_iovcnt, ctx->offset,
					      ctx->head_blocks, forward_done, io);
	case SPDK_BDEV_IO_TYPE_FLUSH:
		return sdm_submit_flush(desc, channel, forward_done, io);
	case SPDK_BDEV_IO_TYPE_UNMAP:
		return spdk_bdev_unmap_blocks(desc, channel, ctx->offset, io->u.bdev.num_blocks, forward_done, io);
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
		return spdk_bdev_write_zeroes_blocks(desc, channel, ctx->offset, io->u.bdev.num_blocks,
						     forward_done, io);
	default:
		return -ENOTSUP;
	}
}

static inline void
forward_submit(struct spdk_bdev_io *io, const struct sdm_way *way, uint64_t offset_blocks, uint64_t head_blocks)
{
	int rc;

	if (io->type == SPDK_BDEV_IO_TYPE_READ && spdk_likely(head_blocks == 0)) {
		rc = spdk_bdev_readv_blocks(way->spdk_desc, way->channel, io->u.bdev.iovs, io->u.bdev.iovcnt,
					    offset_blocks, io->u.bdev.num_blocks, forward_done, io);
	} else if (io->type == SPDK_BDEV_IO_TYPE_WRITE) {
		rc = spdk_bdev_writev_blocks(way->spdk_desc, way->channel, io->u.bdev.iovs, io->u.bdev.iovcnt,
					     offset_blocks, io->u.bdev.num_blocks, forward_done, io);
	} else {
		rc = submit_other(io, way);
	}
	if (spdk_unlikely(rc != 0)) {
		forward_refused(io, rc);
	}
}

static void
forward_again(void *arg)
{
	struct io_ctx *ctx = ctx_of(arg);

	forward_submit(arg, ctx->way, ctx->offset, ctx->head_blocks);
}

/* Zeroes the buffers behind the head and makes a list of those before. */
static bool
cut_head(struct spdk_bdev_io *io)
{
	struct io_ctx *ctx = ctx_of(io);
	uint64_t left = ctx->head_blocks * io->bdev->blocklen;
	struct iovec *iov;
	size_t in_head;
	int i;

	ctx->head_iovs = calloc(io->u.bdev.iovcnt, sizeof(*ctx->head_iovs));
	ctx->head_iovcnt = 0;
	if (ctx->head_iovs == NULL) {
		return false;
	}
	for (i = 0; i < io->u.bdev.iovcnt; i++) {
		iov = &io->u.bdev.iovs[i];
		in_head = spdk_min(iov->iov_len, left);
		if (in_head > 0) {
			ctx->head_iovs[ctx->head_iovcnt].iov_base = iov->iov_base;
			ctx->head_iovs[ctx->head_iovcnt].iov_len = in_head;
			ctx->head_iovcnt++;
		}
		memset((char *)iov->iov_base + in_head, 0, iov->iov_len - in_head);
		left -= in_head;
	}
	return true;
}

static void
forward_got_buf(struct spdk_io_channel *ch, struct spdk_bdev_io *io, bool success)
{
	struct io_ctx *ctx = ctx_of(io);

	if (!success) {
		forward_finish(io, false);
		return;
	}
	if (spdk_unlikely(ctx->head_blocks != 0) && !cut_head(io)) {
		forward_finish(io, false);
		return;
	}
	forward_again(io);
}

static inline void
forward(struct spdk_bdev_io *io, const struct sdm_way *way, uint64_t offset_blocks, uint64_t head_blocks,
	uint64_t ticket)
{
	struct io_ctx *ctx = ctx_of(io);

	ctx->way = way;
	ctx->offset = offset_blocks;
	ctx->ticket = ticket;
	ctx->head_blocks = head_blocks;
	if (spdk_unlikely(head_blocks != 0)) {
		ctx->head_iovs = NULL;
	}
	if (io->type == SPDK_BDEV_IO_TYPE_READ && spdk_unlikely(needs_buf(io))) {
		spdk_bdev_io_get_buf(io, forward_got_buf, io->u.bdev.num_blocks * io->bdev->blocklen);
		return;
	}
	if (spdk_unlikely(head_blocks != 0)) {
		forward_got_buf(NULL, io, true);
		return;
	}
	forward_submit(io, way, offset_blocks, 0);
}

void
sdm_io_forward(void *bdev_io, const struct sdm_way *way, uint64_t offset_blocks, uint64_t ticket)
{
	forward(bdev_io, way, offset_blocks, 0, ticket);
}

void
sdm_io_set_other(void *bdev_io, const struct sdm_way *way)
{
	ctx_of(bdev_io)->other = way;
}

void
sdm_io_forward_other(void *bdev_io, uint64_t offset_blocks, uint64_t head_blocks, uint64_t ticket)
{
	struct io_ctx *ctx = ctx_of(bdev_io);

	if (ctx->other == NULL) {
		ctx->channel->vbdev->ops->forwarded(ctx->channel->value, bdev_io, ticket, false);
		return;
	}
	forward(bdev_io, ctx->other, offset_blocks, head_blocks, ticket);
}

static void
zeroes_got_buf(struct spdk_io_channel *ch, struct spdk_bdev_io *io, bool success)
{
	int i;

	if (!success) {
		spdk_bdev_io_complete(io, SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
	for (i = 0; i < io->u.bdev.iovcnt; i++) {
		memset(io->u.bdev.iovs[i].iov_base, 0, io->u.bdev.iovs[i].iov_len);
	}
	spdk_bdev_io_complete(io, SPDK_BDEV_IO_STATUS_SUCCESS);
}

void
sdm_io_complete_zeroes(void *bdev_io)
{
	struct spdk_bdev_io *io = bdev_io;

	if (needs_buf(io)) {
		spdk_bdev_io_get_buf(io, zeroes_got_buf, io->u.bdev.num_blocks * io->bdev->blocklen);
	} else {
		zeroes_got_buf(NULL, io, true);
	}
}

void
sdm_io_complete(void *bdev_io, int err)
{
	switch (err) {
	case 0:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_SUCCESS);
		break;
	case ENOMEM:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_NOMEM);
		break;
	case ECANCELED:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_ABORTED);
		break;
	case ENOSPC:
		/* generic command status, capacity exceeded */
		spdk_bdev_io_complete_nvme_status(bdev_io, 0, 0, 0x81);
		break;
	default:
		spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_FAILED);
		break;
	}
}

void *
sdm_io_to_abort(void *bdev_io)
{
	return ((struct spdk_bdev_io *)bdev_io)->u.abort.bio_to_abort;
}

static int
channel_create(void *io_device, void *ctx_buf)
{
	struct vbdev *vb = io_device;
	struct vbdev_channel *channel = ctx_buf;

	channel->vbdev = vb;
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
	int kind = kind_of(type);

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
	.submit_request = vbdev_submit,
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
	vb->buffers_first = params->buffers_first;
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
