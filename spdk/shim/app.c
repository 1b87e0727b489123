/* SPDX-License-Identifier: BSD-3-Clause
 * Programs of our own: an application run from Rust, and a target with SPDK's usual options. */
#include "shim.h"

#include "spdk/stdinc.h"
#include "spdk/cpuset.h"
#include "spdk/env.h"
#include "spdk/event.h"
#include "spdk/thread.h"
#include "spdk/version.h"
#include "internal.h"

static void
opts_init(struct spdk_app_opts *opts)
{
#if SPDK_VERSION >= SPDK_VERSION_NUM(21, 1, 0)
	spdk_app_opts_init(opts, sizeof(*opts));
#else
	spdk_app_opts_init(opts);
#endif
}

struct run {
	void (*start)(void *);
	void *ctx;
};

static void
run_start(void *arg)
{
	struct run *run = arg;

	g_sdm_app_thread = spdk_get_thread();
	run->start(run->ctx);
}

int
sdm_app_run(const struct sdm_app_params *params, void (*start)(void *), void *ctx)
{
	struct run run = { .start = start, .ctx = ctx };
	struct spdk_app_opts opts = {};
	int rc;

	opts_init(&opts);
	opts.name = params->name;
	opts.rpc_addr = params->rpc_socket;
	opts.json_config_file = params->json_config;
	opts.reactor_mask = params->core_mask;
	opts.mem_size = params->mem_mb;
	opts.no_pci = true;
	/* No traces: their 130 MB take longer to make than most of what a test has such a program do. */
	opts.num_entries = 0;
	/* So that hugepages of a killed process are free again. */
	opts.unlink_hugepage = !params->no_huge;
#if SPDK_VERSION >= SPDK_VERSION_NUM(23, 1, 0)
	/* A test's host shares cores with the targets it is a host of. */
	opts.disable_cpumask_locks = true;
#endif
	if (params->no_huge) {
#if SPDK_VERSION >= SPDK_VERSION_NUM(23, 1, 0)
		opts.no_huge = true;
#else
		opts.env_context = (void *)"--no-huge";
#endif
	}
	rc = spdk_app_start(&opts, run_start, &run);
	spdk_app_fini();
	return rc;
}

void
sdm_app_stop(int rc)
{
	spdk_app_stop(rc);
}

void *
sdm_thread_on_core(const char *name, unsigned n)
{
	struct spdk_cpuset *mask;
	struct spdk_thread *thread;
	uint32_t core;

	SPDK_ENV_FOREACH_CORE(core) {
		if (n-- == 0) {
			break;
		}
	}
	if (core == UINT32_MAX || (mask = spdk_cpuset_alloc()) == NULL) {
		return NULL;
	}
	spdk_cpuset_set_cpu(mask, core, true);
	thread = spdk_thread_create(name, mask);
	spdk_cpuset_free(mask);
	return thread;
}

void
sdm_thread_exit(void)
{
	spdk_thread_exit(spdk_get_thread());
}

static void
tgt_usage(void)
{
}

static int
tgt_parse_arg(int ch, char *arg)
{
	return -EINVAL;
}

static void
tgt_started(void *ctx)
{
}

int
sdm_spdk_tgt_main(int argc, char **argv)
{
	struct spdk_app_opts opts = {};
	int rc;

	opts_init(&opts);
	opts.name = "spdk_dm_tgt";
	rc = spdk_app_parse_args(argc, argv, &opts, "", NULL, tgt_parse_arg, tgt_usage);
	if (rc != SPDK_APP_PARSE_ARGS_SUCCESS) {
		return rc == SPDK_APP_PARSE_ARGS_HELP ? 0 : 1;
	}
	rc = spdk_app_start(&opts, tgt_started, NULL);
	spdk_app_fini();
	return rc;
}
