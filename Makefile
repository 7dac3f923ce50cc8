# Every target does its own set-up: `make test` and `make demo` work in a fresh clone on a machine with nothing but
# Python 3.11+ (and Go 1.26, or the wheel that carries it: dev/cluster takes care). `make help` lists the targets.

PYTHON ?= python3
# Test processes. Each may start a control plane and a trainer, so more than cores makes all of them slower.
WORKERS ?= 2
BASE_IMAGE ?=
KEEP ?=

BIN := .venv/bin
PINS := requirements/bootstrap.txt requirements/dev.txt
# What the installs read: a change of tool configuration in pyproject.toml costs a second, not a new environment.
STAMP := .venv/.installed
TOOLS := .venv/.tools
CONTROL_PLANE := $(wildcard dev/cluster/go.* dev/cluster/main.go dev/cluster/helm/go.*)

# Recipes run with the environment's tools first: kubectl and helm of our own building, the pinned ruff.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Two test processes whose libraries each start a thread a core spend their time waiting for each other.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.PHONY: help venv tools lock manifests format lint test test-unit test-faults test-images cluster cluster-down store store-down demo images images-check bench-operator bench-prepare bench-trainer quality clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1m%-15s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) $(TOOLS) ## Make .venv: the pinned packages, this project, kubectl and helm of our own building

tools: $(TOOLS)

# The pins are complete (--no-deps) and wheels: a machine without a compiler is enough. DeepSpeed comes as source alone,
# whose build copies Python files; what that build needs is pinned as well.
$(STAMP): $(PINS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): 3.11, 3.12 or 3.13 is needed (make PYTHON=python3.12 ...)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --only-binary :all: --no-binary deepspeed \
		--build-constraints requirements/bootstrap.txt --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -P -c 'import finetune_operator, finetune_contract, finetune_trainer' || \
		{ echo "the editable install misses a folder: see .venv/lib/python*/site-packages/*.pth" >&2; exit 1; }
	@touch $@

# The binaries themselves lie in the user's cache folder, which may be emptied at any time.
ifeq ($(and $(realpath $(BIN)/kubectl),$(realpath $(BIN)/helm)),)
.PHONY: $(TOOLS)
endif
$(TOOLS): $(CONTROL_PLANE) | $(STAMP)
	$(BIN)/python -m dev.cluster build --bin-dir $(BIN)
	@touch $@

lock: $(STAMP) ## Remake the pins in requirements/ from pyproject.toml (UPGRADE=1 takes newer versions)
	sh requirements/compile.sh

manifests: $(STAMP) ## Generate the CRDs (manifests, chart) and docs/api-reference.md from the types
	$(BIN)/python -m dev.generated

format: $(STAMP) ## Format the code and apply the fixes that are safe
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## Check format, rules, types, import directions, and that generated files are up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m dev.generated --check

test: venv ## Run the whole suite, end to end included
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long and not images"

test-unit: $(STAMP) ## Run what needs no process beside it: the inner loop, under a minute
	$(PYTEST) -n $(WORKERS) tests/unit

test-faults: venv ## Run every fault: an API server away for minutes, kills at each write, long random walks (under 30 minutes)
	WALKS=2000 $(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests/faults tests/unit/test_walk.py

bench-operator: venv ## Measure the operator with 500 jobs; the last line is one JSON object
	$(BIN)/python -m benchmarks.operator_bench

bench-prepare: venv ## Measure the prepare stage with 10 thousand and 1 million examples; the last line is one JSON object
	$(BIN)/python -m benchmarks.prepare_bench

bench-trainer: $(STAMP) ## Measure step time and memory by method beside the plain TRL script; the last line is one JSON object
	$(BIN)/python -m benchmarks.trainer_bench

quality: $(STAMP) ## Show on a real model that what is to be learned is, and what must be equal is (under 25 minutes)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -m benchmarks.quality

cluster: venv ## Start a local cluster with the manifests installed and the operator running
	$(BIN)/python -m dev.demo cluster-up

cluster-down: $(STAMP) ## End it; no process is left
	$(BIN)/python -m dev.demo cluster-down

store: $(STAMP) ## Start an object store with the examples' models and data, for `finetune run`: eval "$(make -s store)"
	@$(BIN)/python -m dev.demo store-up

store-down: $(STAMP) ## End it
	@$(BIN)/python -m dev.demo store-down

demo: venv ## Tune a model on the local cluster from start to end (KEEP=1 leaves it up)
	$(BIN)/python -m dev.demo run $(if $(KEEP),--keep)

images: $(STAMP) ## Build both images (BASE_IMAGE=... or one made by debootstrap), each with its bill of materials
	$(BIN)/python -m dev.images build $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE))

test-images: venv ## Tune a model with both images, run by podman as the pods' specs say (after make images; as root)
	$(PYTEST) tests/images

images-check: $(STAMP) ## Run both images as the manifests do: uid 10001, read-only root, no capabilities
	$(BIN)/python -m dev.images check

clean: ## Remove what was built here, after ending cluster and store; the caches of the user's folder stay
	@test ! -d .run || test ! -e $(STAMP) || { $(BIN)/python -m dev.demo cluster-down; $(BIN)/python -m dev.demo store-down; }
	rm -rf .venv .build .run dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
