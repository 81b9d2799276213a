# Two commands do all set-up: `make quickstart` and `make test`. Both make the environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help quickstart test test-slow lint format bench pods pods-check clean

help:
	@echo "make quickstart  train, evaluate, sample and infill on a laptop CPU, in about 6 minutes"
	@echo "make test        the test suite"
	@echo "make test-slow   the tests that take minutes"
	@echo "make lint        ruff and the type checker"
	@echo "make bench       the figures of docs/benchmarks.md"
	@echo "make pods        the table of docs/pods.md: compiles for TPU slices, without one"
	@echo "make pods-check  two plans of that table"

quickstart: $(READY)
	$(BIN)/python launch/quickstart.py --workdir=runs/quickstart

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow || [ $$? -eq 5 ]  # 5: no test is marked slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --level error

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python launch/benchmark.py

pods: $(READY)
	$(BIN)/python launch/compile.py --table --records=runs/pods.jsonl --page=docs/pods.md

pods-check: $(READY)
	$(BIN)/python -m pytest -m slow tests/pods -k plan_of_the_docs

# Not runs/: what was trained is not ours to delete.
clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache

# uv where there is one, else venv and pip. The stamp is written last, so that an interrupted
# installation is done again.
$(READY): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --allow-existing --python '>=3.11' $(VENV) && \
	  uv pip install --python $(BIN)/python -e '.[dev]'; \
	else \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "mdm_jax needs Python 3.11 or newer; $(PYTHON) is older." \
	           "Run make PYTHON=python3.11 (or install uv)." >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@touch $@
