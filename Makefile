# The front door. `make help` lists the targets; each sets up what it needs first.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help spdk tools build check unit sim integration test demo run bench clean

CACHE := $(or $(SPDK_DM_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/spdk-dm)
SEEDS ?= 200
START ?= 1

# Every recipe that needs SPDK begins with this.
ENV := command -v cargo >/dev/null || { echo "a Rust toolchain is needed: https://rustup.rs" >&2; exit 1; }; \
	settings=$$(spdk-config/setup-spdk --print-env); eval "$$settings"; \
	export SPDK_DM_STRICT_TOOLS="$(CACHE)/strict-tools"
PYTHON := "$(CACHE)/venv/bin/python"

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

spdk: ## Find an SPDK (SPDK_DIR), or get and build v20.07 into the cache
	@spdk-config/setup-spdk

tools: ## Install thin-provisioning-tools (two generations) and the Python environment for tests
	@spdk-config/setup-tools

build: ## Build libspdk_dm.so and spdk_dm_tgt into target/release
	@$(ENV); cargo build --release --workspace

check: ## Formatting, clippy and documentation, warnings denied
	@$(ENV); cargo fmt --all --check; \
	cargo clippy --workspace --all-targets -- -D warnings; \
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

unit: tools ## Unit and property tests
	@$(ENV); cargo test --release --workspace --no-fail-fast

integration: tools build ## Tests on real SPDK targets
	@$(ENV); SPDK_DM_NO_HUGE=$$(spdk-config/setup-hugepages) \
	$(PYTHON) -m pytest -q tests $(PYTEST)

test: ## Everything: check, unit, integration; ends with counts
	@spdk-config/run-tests

demo: tools build ## The main job from an empty machine, step by step
	@$(ENV); SPDK_DM_NO_HUGE=$$(spdk-config/setup-hugepages) $(PYTHON) spdk-config/demo

run: tools build ## As demo, but leaves the target running in the foreground
	@$(ENV); SPDK_DM_NO_HUGE=$$(spdk-config/setup-hugepages) $(PYTHON) spdk-config/demo --foreground

bench: tools build ## bdevperf side by side: thin, passthru
	@$(ENV); SPDK_DM_NO_HUGE=$$(spdk-config/setup-hugepages) $(PYTHON) bench/run $(BENCH)

clean: ## Remove what was built here (not the cache)
	cargo clean
