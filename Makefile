# `make demo` and `make test` do all their own set-up in .venv; Python 3.11+, git and make are all they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SETUP  := pyproject.toml constraints.txt
MACHINE ?= mine

.PHONY: demo test lint types docs bench mutants clean

demo: $(VENV)/.run
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q   # one thread each: two workers share the cores

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.test
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python -m docs.site   # into build/site; open build/site/index.html, no server is needed

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.speed --out docs/performance/$(MACHINE).csv
	$(BIN)/python -m benchmarks.speed.report

mutants: $(VENV)/.test
	$(BIN)/python -m benchmarks.mutants

$(VENV)/.python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.run: $(VENV)/.python $(SETUP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m tests.torchvision_pair   # beside a CPU build of torch: see there
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.bench: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
