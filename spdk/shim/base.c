/* SPDX-License-Identifier: BSD-3-Clause
 * Base bdevs: opening, claiming, and I/O from slow paths. */
#include "shim.h"

#include "spdk/stdinc.h"
#include "spdk/bdev.h"
#include "spdk/bdev_module.h"
#include "spdk/log.h"
#include "spdk/nvme_spec.h"
#include "spdk/thread.h"
#include "spdk/version.h"
#include "internal.h"

static void
event_cb(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *ctx)
{
	struct sdm_desc *d = ctx;

	switch (type) {
	case SPDK_BDEV_EVENT_REMOVE:
		d->event(d->ctx, SDM_EVENT_REMOVE);
		break;
	case SPDK_BDEV_EVENT_RESIZE:
		d->event(d->ctx, SDM_EVENT_RESIZE);
		break;
	default:
		d->event(d->ctx, SDM_EVENT_OTHER);
		break;
	}
}

int
sdm_bdev_exists(const char *name)
{
	return spdk_bdev_get_by_name(name) != NULL;
}

int
sdm_bdev_open(const char *name, bool write, void (*event)(void *, int), void *ctx, void **out)
{
	struct sdm_desc *d = calloc(1, sizeof(*d));
	int rc;

	if (d == NULL) {
		return -ENOMEM;
	}
	d->event = event;
	d->ctx = ctx;
	rc = spdk_bdev_open_ext(name, write, event_cb, d, &d->desc);
	if (rc != 0) {
		free(d);
		return rc;
	}
	d->bdev = spdk_bdev_desc_get_bdev(d->desc);
	*out = d;
	return 0;
}

void
sdm_desc_close(void *desc)
{
	struct sdm_desc *d = desc;

	sdm_desc_release(d);
	spdk_bdev_close(d->desc);
	free(d);
}

int
sdm_desc_claim(void *desc)
{
	struct sdm_desc *d = desc;
	int rc = spdk_bdev_module_claim_bdev(d->bdev, d->desc, &g_sdm_module);

	if (rc == 0) {
		d->claimed = true;
	}
	return rc;
}

void
sdm_desc_release(void *desc)
{
	struct sdm_desc *d = desc;

	if (d->claimed) {
		spdk_bdev_module_release_bdev(d->bdev);
		d->claimed = false;
	}
}

/* SPDK's NVMe bdev answers a flush without sending it to the drive: always in v20.07, and in v26.05
 * unless bdev_nvme_set_options has enable_flush. On a drive with a volatile cache that loses what was
 * flushed, so there the command itself is sent. Only there: stacking modules such as passthru and delay
 * report what their base supports, NVMe commands too, and then fail them. */
static bool
is_nvme(struct spdk_bdev *bdev)
{
	return strcmp(bdev->module->name, "nvme") == 0;
}

int
sdm_submit_flush(struct spdk_bdev_desc *desc, struct spdk_io_channel *channel,
		 spdk_bdev_io_completion_cb cb, void *arg)
{
	struct spdk_bdev *bdev = spdk_bdev_desc_get_bdev(desc);
	struct spdk_nvme_cmd cmd = {};

	if (is_nvme(bdev) && spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_NVME_IO)) {
		cmd.opc = SPDK_NVME_OPC_FLUSH;
		return spdk_bdev_nvme_io_passthru(desc, channel, &cmd, NULL, 0, cb, arg);
	}
	return spdk_bdev_flush_blocks(desc, channel, 0, spdk_bdev_get_num_blocks(bdev), cb, arg);
}

/* Whether it takes a command to copy: an NVMe drive may, a malloc bdev does. */
static bool
copies_itself(struct spdk_bdev *bdev)
{
#if SPDK_VERSION >= SPDK_VERSION_NUM(22, 9, 0)
	return spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_COPY);
#else
	return false;
#endif
}

/* Only a malloc bdev has memory to lend. Others say so because SPDK emulates it, with a buffer of limited
 * size. */
static bool
lends_memory(struct spdk_bdev *bdev)
{
	return strcmp(bdev->module->name, "malloc") == 0 &&
	       spdk_bdev_io_type_supported(bdev, SPDK_BDEV_IO_TYPE_ZCOPY);
}

void
sdm_desc_info(void *desc, struct sdm_bdev_info *info)
{
	struct sdm_desc *d = desc;
	static const struct {
		enum spdk_bdev_io_type type;
		int kind;
	} kinds[] = {
		{SPDK_BDEV_IO_TYPE_READ, SDM_READ},
		{SPDK_BDEV_IO_TYPE_WRITE, SDM_WRITE},
		{SPDK_BDEV_IO_TYPE_FLUSH, SDM_FLUSH},
		{SPDK_BDEV_IO_TYPE_UNMAP, SDM_UNMAP},
		{SPDK_BDEV_IO_TYPE_WRITE_ZEROES, SDM_WRITE_ZEROES},
		{SPDK_BDEV_IO_TYPE_RESET, SDM_RESET},
	};
	size_t i;

	memset(info, 0, sizeof(*info));
	info->block_bytes = spdk_bdev_get_block_size(d->bdev);
	info->nr_blocks = spdk_bdev_get_num_blocks(d->bdev);
	info->metadata_bytes = spdk_bdev_get_md_size(d->bdev);
	info->metadata_interleaved = spdk_bdev_is_md_interleaved(d->bdev);
	info->dif_type = spdk_bdev_get_dif_type(d->bdev);
	for (i = 0; i < SPDK_COUNTOF(kinds); i++) {
		if (spdk_bdev_io_type_supported(d->bdev, kinds[i].type)) {
			info->io_kinds |= 1u << kinds[i].kind;
		}
	}
	info->copies = copies_itself(d->bdev) || lends_memory(d->bdev);
	info->stacked_on_nvme = !is_nvme(d->bdev) &&
				spdk_bdev_io_type_supported(d->bdev, SPDK_BDEV_IO_TYPE_NVME_IO);
}

void *
sdm_desc_spdk(void *desc)
{
	return sdm_desc_raw(desc);
}

void *
sdm_desc_channel(void *desc)
{
	struct sdm_desc *d = desc;

	return spdk_bdev_get_io_channel(d->desc);
}

/* After the kinds that come from outside. */
#define SDM_COPY (SDM_OTHER + 1)

struct base_io {
	int kind;
	struct sdm_desc *desc;
	struct spdk_io_channel *channel;
	void *buf;
	uint64_t offset;
	uint64_t count;
	uint64_t to;			/* of a copy */
	struct spdk_bdev_io *lent;	/* has the memory of the source of a copy */
	int err;
	void (*done)(void *, int);
	void *ctx;
	struct spdk_bdev_io_wait_entry wait;
};

static void
base_io_finish(struct base_io *io, int err)
{
	io->done(io->ctx, err);
	free(io);
}

static void
base_io_done(struct spdk_bdev_io *bdev_io, bool success, void *ctx)
{
	spdk_bdev_free_io(bdev_io);
	base_io_finish(ctx, success ? 0 : EIO);
}

static void base_io_submit(void *ctx);

static void
lent_returned(struct spdk_bdev_io *bdev_io, bool success, void *ctx)
{
	struct base_io *io = ctx;

	spdk_bdev_free_io(bdev_io);
	base_io_finish(io, io->err);
}

static void
copy_return(struct base_io *io, int err)
{
	io->err = err;
	/* Nothing was changed in it, so nothing is to be committed, and there is nothing that can fail. */
	if (spdk_bdev_zcopy_end(io->lent, false, lent_returned, io) != 0) {
		lent_returned(io->lent, false, io);
	}
}

static void
copy_written(struct spdk_bdev_io *bdev_io, bool success, void *ctx)
{
	spdk_bdev_free_io(bdev_io);
	copy_return(ctx, success ? 0 : EIO);
}

static void
copy_lent(struct spdk_bdev_io *bdev_io, bool success, void *ctx)
{
	struct base_io *io = ctx;

	if (!success) {
		spdk_bdev_free_io(bdev_io);
		base_io_finish(io, EIO);
		return;
	}
	io->lent = bdev_io;
	base_io_submit(io);
}

/* First the bdev lends the memory of the source, then that is written. */
static int
copy_submit(struct base_io *io)
{
	struct spdk_bdev_desc *desc = io->desc->desc;
	struct iovec *iovs;
	int count;

	if (io->lent != NULL) {
		spdk_bdev_io_get_iovec(io->lent, &iovs, &count);
		return spdk_bdev_writev_blocks(desc, io->channel, iovs, count, io->to, io->count, copy_written, io);
	}
#if SPDK_VERSION >= SPDK_VERSION_NUM(22, 9, 0)
	if (copies_itself(io->desc->bdev)) {
		return spdk_bdev_copy_blocks(desc, io->channel, io->to, io->offset, io->count, base_io_done, io);
	}
#endif
#if SPDK_VERSION >= SPDK_VERSION_NUM(21, 1, 0)
	return spdk_bdev_zcopy_start(desc, io->channel, NULL, 0, io->offset, io->count, true, copy_lent, io);
#else
	return spdk_bdev_zcopy_start(desc, io->channel, io->offset, io->count, true, copy_lent, io);
#endif
}

static void
base_io_submit(void *ctx)
{
	struct base_io *io = ctx;
	struct spdk_bdev_desc *desc = io->desc->desc;
	int rc;

	switch (io->kind) {
	case SDM_READ:
		rc = spdk_bdev_read_blocks(desc, io->channel, io->buf, io->offset, io->count, base_io_done, io);
		break;
	case SDM_WRITE:
		rc = spdk_bdev_write_blocks(desc, io->channel, io->buf, io->offset, io->count, base_io_done, io);
		break;
	case SDM_FLUSH:
		rc = sdm_submit_flush(desc, io->channel, base_io_done, io);
		break;
	case SDM_UNMAP:
		rc = spdk_bdev_unmap_blocks(desc, io->channel, io->offset, io->count, base_io_done, io);
		break;
	case SDM_WRITE_ZEROES:
		rc = spdk_bdev_write_zeroes_blocks(desc, io->channel, io->offset, io->count, base_io_done, io);
		break;
	case SDM_COPY:
		rc = copy_submit(io);
		break;
	default:
		rc = -ENOTSUP;
		break;
	}
	if (rc == -ENOMEM) {
		io->wait.bdev = io->desc->bdev;
		io->wait.cb_fn = base_io_submit;
		io->wait.cb_arg = io;
		rc = spdk_bdev_queue_io_wait(io->desc->bdev, io->channel, &io->wait);
	}
	if (rc != 0 && io->lent != NULL) {
		copy_return(io, -rc);
	} else if (rc != 0) {
		base_io_finish(io, -rc);
	}
}

static void
base_io_start(struct base_io fields)
{
	struct base_io *io = calloc(1, sizeof(*io));

	if (io == NULL) {
		fields.done(fields.ctx, ENOMEM);
		return;
	}
	*io = fields;
	base_io_submit(io);
}

void
sdm_base_io(int kind, void *desc, void *channel, void *buf, uint64_t offset_blocks, uint64_t nr_blocks,
	    void (*done)(void *, int), void *ctx)
{
	base_io_start((struct base_io) {
		.kind = kind, .desc = desc, .channel = channel, .buf = buf, .offset = offset_blocks,
		.count = nr_blocks, .done = done, .ctx = ctx
	});
}

void
sdm_base_copy(void *desc, void *channel, uint64_t from_block, uint64_t to_block, uint64_t nr_blocks,
	      void (*done)(void *, int), void *ctx)
{
	base_io_start((struct base_io) {
		.kind = SDM_COPY, .desc = desc, .channel = channel, .offset = from_block, .to = to_block,
		.count = nr_blocks, .done = done, .ctx = ctx
	});
}
