/* SPDX-License-Identifier: BSD-3-Clause
 * The bdev module: SPDK's calls handed on to Rust. */
#include "shim.h"

#include "spdk/stdinc.h"
#include "spdk/bdev_module.h"
#include "spdk/thread.h"
#include "spdk/version.h"
#include "internal.h"

static const struct sdm_module_ops *g_ops;

static int
module_init(void)
{
	g_sdm_app_thread = spdk_get_thread();
	return g_ops->init();
}

static void
module_fini_start(void)
{
	g_ops->fini_start();
}

static void
module_fini(void)
{
	g_ops->fini();
}

static int
module_config_json(struct spdk_json_write_ctx *w)
{
	g_ops->config_json(w);
	return 0;
}

static void
module_examine(struct spdk_bdev *bdev)
{
	g_ops->examine(spdk_bdev_get_name(bdev));
}

struct spdk_bdev_module g_sdm_module = {
	.module_init = module_init,
	.fini_start = module_fini_start,
	.module_fini = module_fini,
	.async_fini = true,
	.config_json = module_config_json,
	.get_ctx_size = sdm_io_ctx_size,
	.examine_disk = module_examine,
};

void
sdm_module_register(const char *name, const struct sdm_module_ops *ops)
{
	g_ops = ops;
	g_sdm_module.name = name;
	spdk_bdev_module_list_add(&g_sdm_module);
}

void
sdm_module_fini_done(void)
{
#if SPDK_VERSION >= SPDK_VERSION_NUM(21, 7, 0)
	spdk_bdev_module_fini_done();
#else
	spdk_bdev_module_finish_done();
#endif
}

void
sdm_module_examine_done(void)
{
	spdk_bdev_module_examine_done(&g_sdm_module);
}
