# A machine with python3 (3.11 or newer) and make needs nothing else: `make demo` and `make test` build .venv themselves, once.
# Override the interpreter with `make demo PYTHON=/path/to/python3.12`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint docs clean

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.12 python3.11 python3.13; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
endif
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --progress-bar off --no-input --disable-pip-version-check
# accelerate would give a CPU process one thread
THREADS = $(shell $(BIN)/python -c 'import os; print(min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))')

help:
	@echo "make demo      fine-tune the built-in tiny model on the CPU and write a report"
	@echo "make test      the tests that run in minutes"
	@echo "make test-all  every test"
	@echo "make lint      ruff, pyright, codespell"
	@echo "make docs      build the documentation into site/; open site/index.html"
	@echo "make clean     remove caches and distributions; runs/ and .venv stay"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "genrl needs Python 3.11 or newer, and python3 is: $$(python3 --version 2>&1 || true)." \
		"Install python3.11 or python3.12, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "genrl needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" --version 2>&1)" >&2; exit 1; }
	@echo "==> creating .venv with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) -m venv failed: install the venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

.venv/.ready: pyproject.toml | $(BIN)/python
	@echo "==> installing genrl and what it needs into .venv (once; PyTorch is large, so this takes minutes)"
	@$(PIP) -e '.[test]'
	@touch $@

.venv/.ready-dev: pyproject.toml | .venv/.ready
	@echo "==> installing ruff, pyright, codespell and pre-commit into .venv (once)"
	@$(PIP) -e '.[dev]'
	@touch $@

# a reward in a package of its own, for tests/test_plugins.py
EXAMPLE := tests/fixtures/genrl-reward-example
.venv/.ready-example: $(EXAMPLE)/pyproject.toml | .venv/.ready
	@$(PIP) --no-deps --no-build-isolation -e $(EXAMPLE)
	@touch $@

demo: .venv/.ready
	@echo "==> AC-Flow on the shapes world: $(THREADS) CPU threads, no GPU needed"
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(THREADS) trainers/ac_flow.py --config configs/ac_flow/shapes.yaml --run.name demo
	@echo "==> done. Open the report: $(CURDIR)/runs/demo/report.html"

# a process a core, up to four (tests/conftest.py keeps each to its own cores); the tests of a file stay together, for they share what they made
WORKERS = $(shell $(BIN)/python -c 'print(min(4, $(THREADS)))')
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: .venv/.ready .venv/.ready-example
	$(PYTEST) -m "not slow"

test-all: .venv/.ready .venv/.ready-example
	$(PYTEST)

lint: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright

docs: .venv/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "==> done. Open the documentation: $(CURDIR)/site/index.html"

clean:
	rm -rf site dist build/lib build/bdist.* *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
