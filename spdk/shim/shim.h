/* SPDX-License-Identifier: BSD-3-Clause
 * Everything Rust knows of SPDK. No SPDK structure crosses this border, only opaque pointers and
 * plain integers, so that one set of Rust declarations fits every SPDK version. */
#ifndef SDM_SHIM_H
#define SDM_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Kinds of I/O; SPDK's own numbers change between versions. */
enum sdm_io_kind {
	SDM_READ = 0,
	SDM_WRITE = 1,
	SDM_FLUSH = 2,
	SDM_UNMAP = 3,
	SDM_WRITE_ZEROES = 4,
	SDM_RESET = 5,
	SDM_ABORT = 6,
	SDM_OTHER = 7,
};

/* Events of an opened bdev. */
enum sdm_event {
	SDM_EVENT_REMOVE = 0,
	SDM_EVENT_RESIZE = 1,
	SDM_EVENT_OTHER = 2,
};

struct sdm_bdev_info {
	uint32_t block_bytes;
	uint64_t nr_blocks;
	uint32_t metadata_bytes;
	uint32_t metadata_interleaved;
	uint32_t dif_type;
	uint32_t io_kinds; /* bit per sdm_io_kind */
	uint32_t copies; /* sdm_base_copy works */
	uint32_t stacked_on_nvme; /* not an NVMe bdev, yet above one: flushes may end there */
};

/* threads, messages, pollers */
void *sdm_thread_current(void);
void *sdm_thread_app(void);
int sdm_thread_send(void *thread, void (*fn)(void *), void *ctx);
void *sdm_poller_register(int (*fn)(void *), void *ctx, uint64_t period_us);
void sdm_poller_unregister(void *poller);

/* memory */
void *sdm_dma_alloc(size_t bytes, size_t align);
void sdm_dma_free(void *buf);

/* logging: 0 error, 1 warning, 2 notice, 3 info, 4 debug */
void sdm_log(int level, const char *file, int line, const char *func, const char *text);
void sdm_prefer_large_pages(const void *memory, size_t bytes);
int sdm_notify_register(const char *type);
void sdm_notify(const char *type, const char *context);

/* io devices whose per-thread value Rust makes */
typedef void *(*sdm_channel_create)(void *ctx);
typedef void (*sdm_channel_destroy)(void *value);
void *sdm_io_device_register(void *ctx, sdm_channel_create create, sdm_channel_destroy destroy, const char *name);
void sdm_io_device_unregister(void *dev, void (*done)(void *), void *done_ctx);
void *sdm_io_device_get_channel(void *dev);
struct sdm_for_each {
	void (*f)(struct sdm_for_each *each, void *value);
	void (*done)(struct sdm_for_each *each);
};
/* Calls f with the value of each thread that has a channel, on that thread, and then done, here. */
void sdm_io_device_for_each(void *dev, struct sdm_for_each *each);
void *sdm_io_channel_value(void *channel);
void sdm_put_channel(void *channel);

/* base bdevs */
int sdm_bdev_open(const char *name, bool write, void (*event)(void *, int), void *ctx, void **desc);
void sdm_desc_close(void *desc);
int sdm_desc_claim(void *desc);
void sdm_desc_release(void *desc);
void sdm_desc_info(void *desc, struct sdm_bdev_info *info);
void *sdm_desc_channel(void *desc);
/* SPDK's own descriptor. */
void *sdm_desc_spdk(void *desc);
int sdm_bdev_exists(const char *name);
/* Slow path I/O: waits for resources by itself, then calls done(ctx, 0 or errno). */
void sdm_base_io(int kind, void *desc, void *channel, void *buf, uint64_t offset_blocks, uint64_t nr_blocks,
		 void (*done)(void *, int), void *ctx);
/* Copies blocks to another place of the same bdev, without a buffer of ours; where info says it copies. */
void sdm_base_copy(void *desc, void *channel, uint64_t from_block, uint64_t to_block, uint64_t nr_blocks,
		   void (*done)(void *, int), void *ctx);

/* I/O in flight on a channel: the number of its epoch, and how many entered since that began. A ticket is
 * twice the number it entered with. */
struct sdm_in_flight {
	uint64_t epoch;
	uint64_t count;
};

/* Where I/O can be sent. */
struct sdm_way {
	void *spdk_desc;
	void *channel;
	/* Where tickets are counted: such I/O is answered without ops->forwarded, if that is all there is to do.
	 * Or NULL. */
	struct sdm_in_flight *in_flight;
};

/* Where a single I/O goes; way NULL: not known without more ado. */
struct sdm_course {
	const struct sdm_way *way; /* with in_flight */
	uint64_t offset_blocks;
};

/* What needs no look: I/O of these kinds goes to the same blocks of a base bdev. */
struct sdm_passage {
	uint32_t kinds; /* bit per sdm_io_kind */
	const uint64_t *version; /* as long as it is `seen`; NULL: for ever */
	uint64_t seen;
	const struct sdm_way *way; /* with in_flight */
};

/* virtual bdevs */
struct sdm_vbdev_ops {
	/* NULL: the channel cannot be made */
	void *(*channel_create)(void *ctx);
	void (*channel_destroy)(void *channel);
	/* What passes from now on; what it points to lives until the next call, or as long as the channel. */
	void (*passage)(void *channel, struct sdm_passage *passage);
	/* Or NULL. Asked for each read and write that does not pass; what is known is not submitted. */
	struct sdm_course (*plain)(void *channel, int kind, uint64_t offset_blocks, uint64_t nr_blocks);
	void (*submit)(void *channel, void *io, int kind, uint64_t offset_blocks, uint64_t nr_blocks);
	void (*forwarded)(void *channel, void *io, uint64_t ticket, bool ok);
	uint32_t (*io_kinds)(void *ctx);
	/* no more channels; answer with sdm_vbdev_destructed */
	void (*destruct)(void *ctx);
	void (*dump_info)(void *ctx, void *w);
	void (*write_config)(void *ctx, void *w);
};
struct sdm_vbdev_params {
	const char *name;
	const char *product_name;
	uint32_t block_bytes;
	uint64_t nr_blocks;
	uint32_t optimal_boundary_blocks;
	bool write_cache;
	uint8_t uuid[16]; /* all zero: SPDK chooses */
	uint32_t divides_at_blocks; /* reads that cross a multiple of it have buffers when they are submitted; 0: none */
};
void *sdm_vbdev_register(const struct sdm_vbdev_params *params, const struct sdm_vbdev_ops *ops, void *ctx, int *rc);
void sdm_vbdev_unregister(void *vbdev, void (*done)(void *, int), void *ctx);
void sdm_vbdev_destructed(void *vbdev);
/* Its size has changed; who has it open is told. 0 or a negative errno. */
int sdm_vbdev_resize(void *vbdev, uint64_t nr_blocks);
/* Sets the other way of an I/O, for sdm_io_forward_other; valid until the I/O is answered. */
void sdm_io_set_other(void *bdev_io, const struct sdm_way *way);
/* head_blocks 0: all of it; else only so many are read, the rest of the buffers is zeroed */
void sdm_io_forward_other(void *bdev_io, uint64_t offset_blocks, uint64_t head_blocks, uint64_t ticket);
/* Sends the I/O on to a base bdev; ops->forwarded follows. A flush goes to all of it. The way is there until the
 * I/O is back. */
void sdm_io_forward(void *io, const struct sdm_way *way, uint64_t offset_blocks, uint64_t ticket);
/* Fills the buffers with zeroes, getting them first if need be, and completes. */
void sdm_io_complete_zeroes(void *io);
void sdm_io_complete(void *io, int err);
void *sdm_io_to_abort(void *io);
uint64_t sdm_io_nr_blocks(void *io);
/* Fills the buffers of some blocks of an I/O with zeroes. False: it has not all of them. */
bool sdm_io_zero_part(void *bdev_io, uint64_t first_block, uint64_t nr_blocks);
/* Sends some blocks of an I/O, which must have its buffers, to a base bdev; then done(ctx, ok). */
void sdm_io_forward_part(void *bdev_io, uint64_t first_block, uint64_t nr_blocks, void *desc, void *channel,
			 uint64_t offset_blocks, void (*done)(void *, bool), void *ctx);

/* the module */
struct sdm_module_ops {
	int (*init)(void);
	void (*fini_start)(void);
	void (*fini)(void); /* answer with sdm_module_fini_done */
	void (*config_json)(void *w);
	void (*examine)(const char *bdev); /* answer with sdm_module_examine_done */
};
void sdm_module_register(const char *name, const struct sdm_module_ops *ops);
void sdm_module_fini_done(void);
void sdm_module_examine_done(void);

/* JSON-RPC */
typedef void (*sdm_rpc_fn)(size_t method, void *request, const char *params, size_t len);
/* false: no room for more methods */
bool sdm_rpc_register(size_t method, const char *name, sdm_rpc_fn fn);
void sdm_rpc_result(void *request, const char *json, size_t len);
void sdm_rpc_error(void *request, int code, const char *message);
void sdm_json_raw(void *w, const char *json, size_t len);
void sdm_json_named_raw(void *w, const char *name, const char *json, size_t len);

/* applications */
struct sdm_app_params {
	const char *name;
	const char *rpc_socket;
	const char *json_config;
	const char *core_mask;
	int mem_mb;
	bool no_huge;
};
int sdm_app_run(const struct sdm_app_params *params, void (*start)(void *), void *ctx);
void sdm_app_stop(int rc);
/* A thread of the n-th core, or NULL without such a core or memory; it ends by sdm_thread_exit on itself. */
void *sdm_thread_on_core(const char *name, unsigned n);
void sdm_thread_exit(void);
int sdm_spdk_tgt_main(int argc, char **argv);

#endif
