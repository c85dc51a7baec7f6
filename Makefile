# Two commands do everything on a fresh machine with Python 3.11+, make and git:
#   make demo    runs the main job          make test    passes the tests
# PYTHON, MIRROR, RISCV_TESTS may be set on the command line.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUNS   ?= 1000
SEED   ?= 1
STAMP  := $(VENV)/.installed
SEQUENCES ?= 1000000
CASES     ?= 10000000
MIRROR_OPTION := $(if $(MIRROR),--mirror $(MIRROR))

.PHONY: help install demo test unit guest-tests lint types protos image bench-compute conformance bench-embedding bench-templates clean soak-migration bench-migration

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(STAMP)  ## make the virtual environment and install Serai into it

$(STAMP): pyproject.toml hatch_build.py $(wildcard proto/serai/v1/*.proto)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

demo: install image  ## the main job: a cluster, a VNet of Linux guests, a live migration
	$(BIN)/serai demo --report demo-report.json

image: install  ## the Debian guest image, built once and cached
	$(BIN)/serai image build debian $(MIRROR_OPTION)

test: lint types image  ## lint, types and every test
	$(BIN)/python -m pytest

unit: install  ## the tests that need no guest image
	$(BIN)/python -m pytest -m 'not guest'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

protos: install  ## regenerate the gRPC stubs after a change of a contract
	$(BIN)/python hatch_build.py

soak: install  ## millions of random sequences and hostile guests; prints the counts (SEQUENCES, CASES)
	$(BIN)/python -m tests.soak.differential --count $(SEQUENCES)
	$(BIN)/python -m tests.soak.hostile --count $(CASES)

bench-compute: install image  ## the machine against qemu-system-riscv64 -> bench/out/compute.json
	$(BIN)/python bench/compute.py --json bench/out/compute.json

soak-migration: install  ## migrations with a fault in each -> bench/out/soak-migration.json (RUNS, SEED)
	$(BIN)/python -m tests.soak.migration --runs $(RUNS) --seed $(SEED)

conformance: install  ## RISCV_TESTS=DIR: the official riscv-tests, built in a local checkout
	$(BIN)/python -m pytest tests/conformance --riscv-tests='$(RISCV_TESTS)'

bench-embedding: install  ## embedding algorithms on the Waxman-100 setting -> bench/out/embedding.json
	$(BIN)/python -m bench.embedding

bench-templates: install  ## 100 guests from one template -> bench/out/templates.json
	$(BIN)/python -m bench.templates

bench-migration: install  ## live migration beside QEMU's -> bench/out/migration.json
	$(BIN)/python -m bench.migration

clean:  ## remove the virtual environment and everything generated
	rm -rf $(VENV) build dist bench/out demo-report.json .mypy_cache .ruff_cache .pytest_cache
	find proto -name '*_pb2*' -delete
