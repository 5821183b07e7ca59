# Everything sets itself up: `make train` and `make test` work in a fresh clone with Python 3.11 or newer and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Further words for pip, such as an index with the CPU build of torch where there is no GPU.
PIP_OPTIONS ?=
CRASH_OPTIONS ?=

.PHONY: help install train test test-crash mutants lint clean

help:
	@echo 'make train    install, then train the mini policy on the embedded world (minutes on two cores)'
	@echo 'make test     install, then run every test'
	@echo 'make mutants  install, then see that the tests notice small errors made in the sources (half an hour)'
	@echo 'make test-crash  install, then kill runs at drawn moments and compare how they end (half an hour);'
	@echo '              CRASH_OPTIONS="--minutes 10 --seed 1" bounds it'
	@echo 'make lint     install, then check style, types and package directions'
	@echo 'make install  a virtual environment in $(VENV) with the program in it'
	@echo 'make clean    remove $(VENV) and caches; the workspace stays'

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --editable '.[dev]'
	touch $@

train: install
	$(BIN)/sdsearch train quickstart

test: install
	$(BIN)/python -m pytest

mutants: install
	$(BIN)/python -m tests.mutation.run

test-crash: install
	$(BIN)/python -m tests.crash.run $(CRASH_OPTIONS)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
