/* SPDX-License-Identifier: BSD-3-Clause
 * Threads, pollers, memory, logging, io devices. */
#include "shim.h"

#include "spdk/stdinc.h"

#include <sys/mman.h>

#include "spdk/env.h"
#include "spdk/log.h"
#include "spdk/notify.h"
#include "spdk/thread.h"
#include "spdk/version.h"
#include "internal.h"

struct spdk_thread *g_sdm_app_thread;

void *
sdm_thread_current(void)
{
	return spdk_get_thread();
}

void *
sdm_thread_app(void)
{
	return g_sdm_app_thread;
}

int
sdm_thread_send(void *thread, void (*fn)(void *), void *ctx)
{
#if SPDK_VERSION < SPDK_VERSION_NUM(20, 1, 0)
	spdk_thread_send_msg(thread, fn, ctx);
	return 0;
#else
	return spdk_thread_send_msg(thread, fn, ctx);
#endif
}

void *
sdm_poller_register(int (*fn)(void *), void *ctx, uint64_t period_us)
{
	return spdk_poller_register(fn, ctx, period_us);
}

void
sdm_poller_unregister(void *poller)
{
	struct spdk_poller *p = poller;

	spdk_poller_unregister(&p);
}

void *
sdm_dma_alloc(size_t bytes, size_t align)
{
	return spdk_dma_zmalloc(bytes, align, NULL);
}

void
sdm_dma_free(void *buf)
{
	spdk_dma_free(buf);
}

void
sdm_log(int level, const char *file, int line, const char *func, const char *text)
{
	static const enum spdk_log_level levels[] = {
		SPDK_LOG_ERROR, SPDK_LOG_WARN, SPDK_LOG_NOTICE, SPDK_LOG_INFO, SPDK_LOG_DEBUG
	};

	spdk_log(levels[level < 0 || level > 4 ? 0 : level], file, line, func, "%s\n", text);
}

void
sdm_prefer_large_pages(const void *memory, size_t bytes)
{
	const uintptr_t page = 2u << 20;
	uintptr_t begin = ((uintptr_t)memory + page - 1) & ~(page - 1);
	uintptr_t end = ((uintptr_t)memory + bytes) & ~(page - 1);

	if (begin < end) {
		/* A kernel without transparent huge pages says no: fine. */
		(void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
	}
}

int
sdm_notify_register(const char *type)
{
	return spdk_notify_type_register(type) != NULL ? 0 : -ENOMEM;
}

void
sdm_notify(const char *type, const char *context)
{
	spdk_notify_send(type, context);
}

struct sdm_io_device {
	void *ctx;
	sdm_channel_create create;
	sdm_channel_destroy destroy;
	void (*done)(void *);
	void *done_ctx;
};

struct sdm_io_channel {
	struct sdm_io_device *dev;
	void *value;
};

static int
io_channel_create(void *io_device, void *ctx_buf)
{
	struct sdm_io_device *dev = io_device;
	struct sdm_io_channel *ch = ctx_buf;

	ch->dev = dev;
	ch->value = dev->create(dev->ctx);
	return ch->value != NULL ? 0 : -ENOMEM;
}

static void
io_channel_destroy(void *io_device, void *ctx_buf)
{
	struct sdm_io_channel *ch = ctx_buf;

	ch->dev->destroy(ch->value);
}

void *
sdm_io_device_register(void *ctx, sdm_channel_create create, sdm_channel_destroy destroy, const char *name)
{
	struct sdm_io_device *dev = calloc(1, sizeof(*dev));

	if (dev == NULL) {
		return NULL;
	}
	dev->ctx = ctx;
	dev->create = create;
	dev->destroy = destroy;
	spdk_io_device_register(dev, io_channel_create, io_channel_destroy, sizeof(struct sdm_io_channel), name);
	return dev;
}

static void
io_device_gone(void *io_device)
{
	struct sdm_io_device *dev = io_device;

	dev->done(dev->done_ctx);
	free(dev);
}

void
sdm_io_device_unregister(void *io_device, void (*done)(void *), void *done_ctx)
{
	struct sdm_io_device *dev = io_device;

	dev->done = done;
	dev->done_ctx = done_ctx;
	spdk_io_device_unregister(dev, io_device_gone);
}

void *
sdm_io_device_get_channel(void *dev)
{
	return spdk_get_io_channel(dev);
}

static void
for_each_step(struct spdk_io_channel_iter *i)
{
	struct sdm_for_each *each = spdk_io_channel_iter_get_ctx(i);
	struct sdm_io_channel *ch = spdk_io_channel_get_ctx(spdk_io_channel_iter_get_channel(i));

	each->f(each, ch->value);
	spdk_for_each_channel_continue(i, 0);
}

static void
for_each_done(struct spdk_io_channel_iter *i, int status)
{
	struct sdm_for_each *each = spdk_io_channel_iter_get_ctx(i);

	each->done(each);
}

void
sdm_io_device_for_each(void *dev, struct sdm_for_each *each)
{
	spdk_for_each_channel(dev, for_each_step, each, for_each_done);
}

void *
sdm_io_channel_value(void *channel)
{
	struct sdm_io_channel *ch = spdk_io_channel_get_ctx(channel);

	return ch->value;
}

void
sdm_put_channel(void *channel)
{
	spdk_put_io_channel(channel);
}
