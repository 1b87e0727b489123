/* SPDX-License-Identifier: BSD-3-Clause
 * JSON-RPC methods implemented in Rust. SPDK gives a handler no context, so each method has a function
 * of its own that knows its number. */
#include "shim.h"

#include "spdk/stdinc.h"
#include "spdk/json.h"
#include "spdk/jsonrpc.h"
#include "spdk/rpc.h"
#include "internal.h"

#define MAX_PARAMS_BYTES (1 << 20)

static sdm_rpc_fn g_fn;

struct text {
	char *data;
	size_t len;
};

static int
append(void *ctx, const void *data, size_t size)
{
	struct text *text = ctx;
	char *grown;

	if (text->len + size > MAX_PARAMS_BYTES) {
		return -1;
	}
	grown = realloc(text->data, text->len + size);
	if (grown == NULL) {
		return -1;
	}
	memcpy(grown + text->len, data, size);
	text->data = grown;
	text->len += size;
	return 0;
}

static void
handle(size_t method, struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct text text = {};
	struct spdk_json_write_ctx *w;

	if (params != NULL) {
		w = spdk_json_write_begin(append, &text, 0);
		if (w == NULL || spdk_json_write_val(w, params) != 0 || spdk_json_write_end(w) != 0) {
			free(text.data);
			spdk_jsonrpc_send_error_response(request, SPDK_JSONRPC_ERROR_INVALID_PARAMS,
							 "parameters are too large");
			return;
		}
	}
	g_fn(method, request, text.data, text.len);
	free(text.data);
}

#define METHOD(n) \
	static void method_##n(struct spdk_jsonrpc_request *r, const struct spdk_json_val *p) { handle(n, r, p); }
#define METHODS(X) \
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) \
	X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31) \
	X(32) X(33) X(34) X(35) X(36) X(37) X(38) X(39) X(40) X(41) X(42) X(43) X(44) X(45) X(46) X(47) \
	X(48) X(49) X(50) X(51) X(52) X(53) X(54) X(55) X(56) X(57) X(58) X(59) X(60) X(61) X(62) X(63) \
	X(64) X(65) X(66) X(67) X(68) X(69) X(70) X(71) X(72) X(73) X(74) X(75) X(76) X(77) X(78) X(79) \
	X(80) X(81) X(82) X(83) X(84) X(85) X(86) X(87) X(88) X(89) X(90) X(91) X(92) X(93) X(94) X(95) \
	X(96) X(97) X(98) X(99) X(100) X(101) X(102) X(103) X(104) X(105) X(106) X(107) X(108) X(109) X(110) X(111) \
	X(112) X(113) X(114) X(115) X(116) X(117) X(118) X(119) X(120) X(121) X(122) X(123) X(124) X(125) X(126) X(127)
METHODS(METHOD)
#define ENTRY(n) method_##n,
static const spdk_rpc_method_handler g_methods[] = { METHODS(ENTRY) };

bool
sdm_rpc_register(size_t method, const char *name, sdm_rpc_fn fn)
{
	if (method >= SPDK_COUNTOF(g_methods)) {
		return false;
	}
	g_fn = fn;
	spdk_rpc_register_method(name, g_methods[method], SPDK_RPC_RUNTIME);
	return true;
}

void
sdm_rpc_result(void *request, const char *json, size_t len)
{
	struct spdk_json_write_ctx *w = spdk_jsonrpc_begin_result(request);

	if (w != NULL) {
		spdk_json_write_val_raw(w, json, len);
		spdk_jsonrpc_end_result(request, w);
	}
}

void
sdm_rpc_error(void *request, int code, const char *message)
{
	spdk_jsonrpc_send_error_response(request, code, message);
}

void
sdm_json_raw(void *w, const char *json, size_t len)
{
	spdk_json_write_val_raw(w, json, len);
}

void
sdm_json_named_raw(void *w, const char *name, const char *json, size_t len)
{
	spdk_json_write_name(w, name);
	spdk_json_write_val_raw(w, json, len);
}
