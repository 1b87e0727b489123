/* SPDX-License-Identifier: BSD-3-Clause
 * I/O of virtual bdevs: to the driver in Rust, on to base bdevs, and back. The forward path allocates nothing: its
 * state lives in the driver's part of the spdk_bdev_io. */
#include "shim.h"

#include "spdk/stdinc.h"
#include "spdk/bdev_module.h"
#include "spdk/likely.h"
#include "spdk/thread.h"
#include "internal.h"
#include "vbdev.h"

struct io_ctx {
	/* Of what is forwarded. */
	const struct sdm_way *way;
	uint64_t ticket;
	/* Of what waits for a buffer, or for room at the base bdev. */
	uint64_t offset;
	struct spdk_bdev_io_wait_entry wait;
	/* Another way than the base device's, where the driver has set one. */
	const struct sdm_way *other;
	/* Of a read whose head alone is forwarded. */
	uint64_t head_blocks;
	struct iovec *head_iovs;
	int head_iovcnt;
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

static inline int
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

int
sdm_kind_of(enum spdk_bdev_io_type type)
{
	return kind_of(type);
}

static bool
needs_buf(struct spdk_bdev_io *io)
{
	return io->u.bdev.iovs == NULL || io->u.bdev.iovs[0].iov_base == NULL;
}

static struct vbdev_channel *
channel_of(struct spdk_bdev_io *io)
{
	return spdk_io_channel_get_ctx(spdk_bdev_io_get_io_channel(io));
}

static void
forward_finish(struct spdk_bdev_io *io, bool success)
{
	struct io_ctx *ctx = ctx_of(io);
	struct sdm_in_flight *in_flight = ctx->way->in_flight;
	struct vbdev_channel *channel;

	/* Nobody waits for the end of its epoch, and nothing else is to be done with it. */
	if (spdk_likely(in_flight != NULL && ctx->ticket == in_flight->epoch << 1)) {
		in_flight->count--;
		spdk_bdev_io_complete(io, success ? SPDK_BDEV_IO_STATUS_SUCCESS : SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
	channel = channel_of(io);
	channel->vbdev->ops->forwarded(channel->value, io, ctx->ticket, success);
}

static void
forward_done(struct spdk_bdev_io *base_io, bool success, void *arg)
{
	spdk_bdev_free_io(base_io);
	forward_finish(arg, success);
}

/* Goes on with `again` when the base bdev has room. False: it is not about room. */
static bool __attribute__((noinline, cold))
waits_for_room(struct spdk_bdev_io *io, int rc, void (*again)(void *))
{
	struct io_ctx *ctx = ctx_of(io);
	struct spdk_bdev *base;

	if (rc != -ENOMEM) {
		return false;
	}
	base = spdk_bdev_desc_get_bdev(ctx->way->spdk_desc);
	ctx->wait.bdev = base;
	ctx->wait.cb_fn = again;
	ctx->wait.cb_arg = io;
	return spdk_bdev_queue_io_wait(base, ctx->way->channel, &ctx->wait) == 0;
}

static void forward_again(void *arg);

static void __attribute__((noinline, cold))
forward_refused(struct spdk_bdev_io *io, uint64_t offset_blocks, int rc)
{
	ctx_of(io)->offset = offset_blocks;
	if (!waits_for_room(io, rc, forward_again)) {
		forward_finish(io, false);
	}
}

static void
forward_got_buf(struct spdk_io_channel *ch, struct spdk_bdev_io *io, bool success)
{
	if (!success) {
		forward_finish(io, false);
		return;
	}
	forward_again(io);
}

/* All but reads and writes. */
static int __attribute__((noinline))
submit_range(struct spdk_bdev_io *io, const struct sdm_way *way, uint64_t offset_blocks)
{
	struct spdk_bdev_desc *desc = way->spdk_desc;
	struct spdk_io_channel *channel = way->channel;

	switch (io->type) {
	case SPDK_BDEV_IO_TYPE_FLUSH:
		return sdm_submit_flush(desc, channel, forward_done, io);
	case SPDK_BDEV_IO_TYPE_UNMAP:
		return spdk_bdev_unmap_blocks(desc, channel, offset_blocks, io->u.bdev.num_blocks, forward_done, io);
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
		return spdk_bdev_write_zeroes_blocks(desc, channel, offset_blocks, io->u.bdev.num_blocks,
						     forward_done, io);
	default:
		return -ENOTSUP;
	}
}

/* The hot path: little is written down, and nothing that only those need who wait. */
static inline void
forward(struct spdk_bdev_io *io, const struct sdm_way *way, uint64_t offset_blocks, uint64_t ticket)
{
	struct io_ctx *ctx = ctx_of(io);
	int rc;

	ctx->way = way;
	ctx->ticket = ticket;
	if (io->type == SPDK_BDEV_IO_TYPE_READ) {
		if (spdk_unlikely(needs_buf(io))) {
			ctx->offset = offset_blocks;
			spdk_bdev_io_get_buf(io, forward_got_buf, io->u.bdev.num_blocks * io->bdev->blocklen);
			return;
		}
		rc = spdk_bdev_readv_blocks(way->spdk_desc, way->channel, io->u.bdev.iovs, io->u.bdev.iovcnt,
					    offset_blocks, io->u.bdev.num_blocks, forward_done, io);
	} else if (io->type == SPDK_BDEV_IO_TYPE_WRITE) {
		rc = spdk_bdev_writev_blocks(way->spdk_desc, way->channel, io->u.bdev.iovs, io->u.bdev.iovcnt,
					     offset_blocks, io->u.bdev.num_blocks, forward_done, io);
	} else {
		rc = submit_range(io, way, offset_blocks);
	}
	if (spdk_unlikely(rc != 0)) {
		forward_refused(io, offset_blocks, rc);
	}
}

static void
forward_again(void *arg)
{
	struct io_ctx *ctx = ctx_of(arg);

	forward(arg, ctx->way, ctx->offset, ctx->ticket);
}

static inline void
forward_counted(struct spdk_bdev_io *io, const struct sdm_way *way, uint64_t offset_blocks)
{
	way->in_flight->count++;
	forward(io, way, offset_blocks, way->in_flight->epoch << 1);
}

void
sdm_io_forward(void *bdev_io, const struct sdm_way *way, uint64_t offset_blocks, uint64_t ticket)
{
	forward(bdev_io, way, offset_blocks, ticket);
}

static void
head_finish(struct spdk_bdev_io *io, bool success)
{
	free(ctx_of(io)->head_iovs);
	forward_finish(io, success);
}

static void
head_done(struct spdk_bdev_io *base_io, bool success, void *arg)
{
	spdk_bdev_free_io(base_io);
	head_finish(arg, success);
}

static void
head_submit(void *arg)
{
	struct spdk_bdev_io *io = arg;
	struct io_ctx *ctx = ctx_of(io);
	int rc;

	rc = spdk_bdev_readv_blocks(ctx->way->spdk_desc, ctx->way->channel, ctx->head_iovs, ctx->head_iovcnt,
				    ctx->offset, ctx->head_blocks, head_done, io);
	if (rc != 0 && !waits_for_room(io, rc, head_submit)) {
		head_finish(io, false);
	}
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
head_got_buf(struct spdk_io_channel *ch, struct spdk_bdev_io *io, bool success)
{
	if (!success || !cut_head(io)) {
		forward_finish(io, false);
		return;
	}
	head_submit(io);
}

void
sdm_io_set_other(void *bdev_io, const struct sdm_way *way)
{
	ctx_of(bdev_io)->other = way;
}

void
sdm_io_forward_other(void *bdev_io, uint64_t offset_blocks, uint64_t head_blocks, uint64_t ticket)
{
	struct spdk_bdev_io *io = bdev_io;
	struct io_ctx *ctx = ctx_of(io);
	struct vbdev_channel *channel;

	if (ctx->other == NULL) {
		channel = channel_of(io);
		channel->vbdev->ops->forwarded(channel->value, io, ticket, false);
		return;
	}
	if (head_blocks == 0) {
		forward(io, ctx->other, offset_blocks, ticket);
		return;
	}
	ctx->way = ctx->other;
	ctx->ticket = ticket;
	ctx->offset = offset_blocks;
	ctx->head_blocks = head_blocks;
	if (needs_buf(io)) {
		spdk_bdev_io_get_buf(io, head_got_buf, io->u.bdev.num_blocks * io->bdev->blocklen);
		return;
	}
	head_got_buf(NULL, io, true);
}

static void
submit_got_buf(struct spdk_io_channel *ch, struct spdk_bdev_io *io, bool success)
{
	struct vbdev_channel *channel = spdk_io_channel_get_ctx(ch);

	if (!success) {
		spdk_bdev_io_complete(io, SPDK_BDEV_IO_STATUS_FAILED);
		return;
	}
	channel->vbdev->ops->submit(channel->value, io, SDM_READ, io->u.bdev.offset_blocks, io->u.bdev.num_blocks);
}

static bool
may_be_divided(struct vbdev *vbdev, struct spdk_bdev_io *io)
{
	uint64_t boundary = vbdev->divides_at_blocks;

	return boundary != 0 && io->u.bdev.offset_blocks % boundary + io->u.bdev.num_blocks > boundary;
}

/* What does not pass and is not plain. */
static void __attribute__((noinline))
submit(struct vbdev_channel *channel, struct spdk_bdev_io *io, int kind)
{
	bool has_place = kind < SDM_RESET;

	ctx_of(io)->other = NULL;
	if (spdk_unlikely(kind == SDM_READ && needs_buf(io) && may_be_divided(channel->vbdev, io))) {
		spdk_bdev_io_get_buf(io, submit_got_buf, io->u.bdev.num_blocks * io->bdev->blocklen);
		return;
	}
	channel->vbdev->ops->submit(channel->value, io, kind, has_place ? io->u.bdev.offset_blocks : 0,
				    has_place ? io->u.bdev.num_blocks : 0);
}

static inline bool
passes(struct vbdev_channel *channel, int kind)
{
	struct sdm_passage *passage = &channel->passage;

	if (passage->version != NULL &&
	    spdk_unlikely(__atomic_load_n(passage->version, __ATOMIC_ACQUIRE) != passage->seen)) {
		channel->vbdev->ops->passage(channel->value, passage);
	}
	return passage->kinds >> kind & 1;
}

void
sdm_vbdev_submit(struct spdk_io_channel *ch, struct spdk_bdev_io *io)
{
	struct vbdev_channel *channel = spdk_io_channel_get_ctx(ch);
	struct sdm_course course;
	int kind = kind_of(io->type);

	if (passes(channel, kind)) {
		forward_counted(io, channel->passage.way, io->u.bdev.offset_blocks);
		return;
	}
	if (kind <= SDM_WRITE && channel->plain != NULL) {
		course = channel->plain(channel->value, kind, io->u.bdev.offset_blocks, io->u.bdev.num_blocks);
		if (spdk_likely(course.way != NULL)) {
			forward_counted(io, course.way, course.offset_blocks);
			return;
		}
	}
	submit(channel, io, kind);
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
