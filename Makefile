# The front door. `make help` lists the targets; each sets up what it needs first.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help cargo spdk tools kernel hugepages build check unit sim mutations fuzz integration interop soak test demo demo-era demo-snapshot demo-replicate demo-backup demo-migrate demo-merge run bench bench-pools bench-stalls bench-many bench-foreground bench-charts docs clean

# Options for the runners, e.g. make integration PYTEST="-k kill_loop"; make unit UNIT="-- btree"
PYTEST ?=
UNIT ?=
SEEDS ?= 200
START ?= 1
TRACE ?=
MUTATE ?=
INTEROP ?= 4
SECONDS ?= 60
SEED ?=
BENCH ?=
DEMO ?=

# Runs a command with SPDK (and, without --build, tools and hugepages) set up and in its environment.
WITH := spdk-config/with-env
PYTHON := $(WITH) python3

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

cargo:
	@command -v cargo >/dev/null || { echo 'spdk-dm: error: no cargo: install a Rust toolchain, https://rustup.rs' >&2; exit 1; }

spdk: ## Find an SPDK (SPDK_DIR, PKG_CONFIG_PATH), or get and build v20.07 in the cache
	@spdk-config/setup-spdk

tools: ## Get thin-provisioning-tools (0.9 and 1.1) and a Python environment for the tests
	@spdk-config/setup-tools

kernel: ## Get a Linux kernel that tests boot (Debian's user-mode-linux, in the cache)
	@spdk-config/setup-kernel

hugepages: ## Reserve hugepages for the tests (as root; without them SPDK runs with --no-huge)
	@spdk-config/setup-hugepages >/dev/null

build: cargo ## Build libspdk_dm.so and spdk_dm_tgt into target/release
	@$(WITH) --build cargo build --release --workspace --exclude fuzz --exclude sim

check: cargo ## Formatting, clippy and documentation, warnings denied; mutations fit the code
	@cargo fmt --all --check
	@$(WITH) --build cargo clippy --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS='-D warnings' $(WITH) --build cargo doc --workspace --no-deps
	@sim/mutate --check

# These link only as part of an SPDK program, where the integration tests run them.
INSIDE_SPDK := spdk plugin tgt hostio

unit: cargo ## Unit, property and simulator tests
	@$(WITH) cargo test --release --workspace $(INSIDE_SPDK:%=--exclude %) --exclude fuzz --no-fail-fast $(UNIT)
	@cargo test --profile checked -p fuzz --no-fail-fast $(UNIT)

sim: cargo ## Simulated pools with faults and crashes: SEEDS seeds from START on, TRACE=1 tells all
	@cargo run --release -q -p sim -- --seeds $(SEEDS) --start $(START) $(if $(TRACE),--trace)

mutations: cargo ## Break promises one by one; the simulator must notice (writes docs/mutations.md)
	@sim/mutate $(MUTATE)

fuzz: cargo ## Fuzz what reads bytes of disks and users, SECONDS in all
	@fuzz/run $(SECONDS)

integration: build kernel ## Tests on real SPDK targets
	@SOAK_SECONDS=$${SOAK_SECONDS:-30} SOAK_SEED=$${SOAK_SEED:-1} $(PYTHON) -m pytest -q tests --durations=12 $(PYTEST)

interop: build kernel ## Disks handed to and fro between a running Linux kernel and us: INTEROP rounds
	@SPDK_DM_INTEROP_SEEDS=$(INTEROP) $(PYTHON) -m pytest -q tests/test_kernel_*.py $(PYTEST)

soak: build ## Kills, cuts, removals, RPCs at random under load: SECONDS of it, SEED=n repeats the choices
	@SOAK_SECONDS=$(SECONDS) SOAK_SEED=$(SEED) $(PYTHON) -m pytest -q -s tests/test_soak.py $(PYTEST)

test: ## Everything: check, unit, integration; ends with counts
	@spdk-config/run-tests

demo: build ## The main job from an empty machine, step by step
	@$(PYTHON) spdk-config/demo $(DEMO)

demo-era: build ## What eras are for: rollback with a cache, incremental backup
	@$(PYTHON) spdk-config/era-rollback $(DEMO)

demo-snapshot: build ## What snapshots are for: an upgrade of a system rolled back by a merge, killed in the middle
	@$(PYTHON) spdk-config/snapshot-rollback $(DEMO)

demo-replicate: build ## What replication is for: the network cut, the source lost, the replica takes over, and back
	@$(PYTHON) spdk-config/replicate $(DEMO)

demo-backup: build ## What backups are for: of a device in use, the drive cut off, the target lost; restored elsewhere
	@$(PYTHON) spdk-config/backup $(DEMO)

demo-migrate: build ## What migration is for: a device in use moves to another drive, which is cut off meanwhile
	@$(PYTHON) spdk-config/migrate $(DEMO)

demo-merge: build ## What merging is for: changes of a device in use go into a golden image, killed in the middle
	@$(PYTHON) spdk-config/merge $(DEMO)

run: build ## As demo, but leaves the target running in the foreground
	@$(PYTHON) spdk-config/demo --foreground $(DEMO)

bench: build ## bdevperf side by side: thin, era and snapshots next to passthru, lvol, …; BENCH=--all for everything
	@$(PYTHON) bench/run $(BENCH)

bench-pools: build ## Time to open pools of 1 M to 128 M mappings, and their memory
	@$(PYTHON) bench/pools $(BENCH)

bench-stalls: build ## Longest I/O while snapshots are created and a large device is deleted
	@$(PYTHON) bench/stalls $(BENCH)

bench-many: build ## 100,000 thin devices in one pool
	@$(PYTHON) bench/many $(BENCH)

bench-foreground: build ## What a load keeps of its I/O beside a backup, a replication, a migration
	@$(PYTHON) bench/foreground $(BENCH)

FIGURES ?= bench.json
bench-charts: ## Charts of FIGURES=bench.json, written by make bench BENCH='--json bench.json'
	@spdk-config/setup-tools --charts
	@$(PYTHON) bench/charts $(FIGURES) $(BENCH)

docs: cargo ## The documentation as a site, with that of the Rust crates: target/site
	@spdk-config/setup-tools --docs
	@RUSTDOCFLAGS='-D warnings' $(WITH) --build cargo doc --workspace --no-deps
	@$(PYTHON) spdk-config/build-docs

clean: cargo ## Remove what was built here (not the cache)
	cargo clean
