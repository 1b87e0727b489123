/* SPDX-License-Identifier: BSD-3-Clause
 * Parts of an I/O of a virtual bdev, each sent to a place of its own. Not for the forward path: each part
 * allocates. */
#include "shim.h"

#include "spdk/stdinc.h"
#include "spdk/bdev_module.h"
#include "internal.h"

struct part {
	struct spdk_bdev_io *whole;
	struct spdk_bdev_desc *desc;
	struct spdk_io_channel *channel;
	uint64_t offset;
	uint64_t nr_blocks;
	void (*done)(void *, bool);
	void *ctx;
	struct spdk_bdev_io_wait_entry wait;
	int iovcnt;
	struct iovec iovs[];
};

uint64_t
sdm_io_nr_blocks(void *bdev_io)
{
	return ((struct spdk_bdev_io *)bdev_io)->u.bdev.num_blocks;
}

static void
finish(struct part *part, bool ok)
{
	part->done(part->ctx, ok);
	free(part);
}

static void
part_done(struct spdk_bdev_io *base_io, bool success, void *arg)
{
	spdk_bdev_free_io(base_io);
	finish(arg, success);
}

static void
part_submit(void *arg)
{
	struct part *part = arg;
	struct spdk_bdev *base;
	int rc;

	switch (part->whole->type) {
	case SPDK_BDEV_IO_TYPE_READ:
		rc = spdk_bdev_readv_blocks(part->desc, part->channel, part->iovs, part->iovcnt, part->offset,
					    part->nr_blocks, part_done, part);
		break;
	case SPDK_BDEV_IO_TYPE_WRITE:
		rc = spdk_bdev_writev_blocks(part->desc, part->channel, part->iovs, part->iovcnt, part->offset,
					     part->nr_blocks, part_done, part);
		break;
	case SPDK_BDEV_IO_TYPE_UNMAP:
		rc = spdk_bdev_unmap_blocks(part->desc, part->channel, part->offset, part->nr_blocks, part_done, part);
		break;
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
		rc = spdk_bdev_write_zeroes_blocks(part->desc, part->channel, part->offset, part->nr_blocks,
						   part_done, part);
		break;
	default:
		rc = -ENOTSUP;
		break;
	}
	if (rc == -ENOMEM) {
		base = spdk_bdev_desc_get_bdev(part->desc);
		part->wait.bdev = base;
		part->wait.cb_fn = part_submit;
		part->wait.cb_arg = part;
		rc = spdk_bdev_queue_io_wait(base, part->channel, &part->wait);
	}
	if (rc != 0) {
		finish(part, false);
	}
}

/* Hands out the memory of some blocks, piece by piece. False: the I/O has not so many. */
static bool
for_each_piece(struct spdk_bdev_io *io, uint64_t first_block, uint64_t nr_blocks,
	       void (*take)(void *ctx, void *piece, size_t len), void *ctx)
{
	uint64_t skip = first_block * io->bdev->blocklen;
	uint64_t left = nr_blocks * io->bdev->blocklen;
	struct iovec *iov;
	uint64_t len;
	int i;

	for (i = 0; i < io->u.bdev.iovcnt && left > 0; i++) {
		iov = &io->u.bdev.iovs[i];
		if (iov->iov_base == NULL) {
			return false;
		}
		if (skip >= iov->iov_len) {
			skip -= iov->iov_len;
			continue;
		}
		len = spdk_min(iov->iov_len - skip, left);
		take(ctx, (char *)iov->iov_base + skip, len);
		left -= len;
		skip = 0;
	}
	return left == 0;
}

static void
add_piece(void *ctx, void *piece, size_t len)
{
	struct part *part = ctx;

	part->iovs[part->iovcnt].iov_base = piece;
	part->iovs[part->iovcnt].iov_len = len;
	part->iovcnt++;
}

static void
zero_piece(void *ctx, void *piece, size_t len)
{
	memset(piece, 0, len);
}

bool
sdm_io_zero_part(void *bdev_io, uint64_t first_block, uint64_t nr_blocks)
{
	return for_each_piece(bdev_io, first_block, nr_blocks, zero_piece, NULL);
}

void
sdm_io_forward_part(void *bdev_io, uint64_t first_block, uint64_t nr_blocks, void *desc, void *channel,
		    uint64_t offset_blocks, void (*done)(void *, bool), void *ctx)
{
	struct spdk_bdev_io *io = bdev_io;
	bool has_data = io->type == SPDK_BDEV_IO_TYPE_READ || io->type == SPDK_BDEV_IO_TYPE_WRITE;
	size_t nr_iovs = has_data && io->u.bdev.iovs != NULL ? io->u.bdev.iovcnt : 0;
	struct part *part = calloc(1, sizeof(*part) + nr_iovs * sizeof(struct iovec));

	if (part == NULL) {
		done(ctx, false);
		return;
	}
	part->whole = io;
	part->desc = sdm_desc_raw(desc);
	part->channel = channel;
	part->offset = offset_blocks;
	part->nr_blocks = nr_blocks;
	part->done = done;
	part->ctx = ctx;
	if (has_data && (nr_iovs == 0 || !for_each_piece(io, first_block, nr_blocks, add_piece, part))) {
		finish(part, false);
		return;
	}
	part_submit(part);
}
