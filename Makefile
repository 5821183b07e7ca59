# Everything sets itself up: `make train` and `make test` work in a fresh clone with Python 3.11 or newer and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# PyPI's torch for Linux carries 3 GB of CUDA. Where there is no GPU the CPU build is taken, if its index answers.
CPU_TORCH := https://download.pytorch.org/whl/cpu

.PHONY: help install train test lint clean

help:
	@echo 'make train    install, then train the mini policy on the embedded world (minutes on two cores)'
	@echo 'make test     install, then run every test'
	@echo 'make lint     install, then check style, types and package directions'
	@echo 'make install  a virtual environment in $(VENV) with the program in it'
	@echo 'make clean    remove $(VENV) and caches; the workspace stays'

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@option=; \
	if ! command -v nvidia-smi >/dev/null 2>&1 && \
	  $(BIN)/python -c "import urllib.request; urllib.request.urlopen('$(CPU_TORCH)/torch/', timeout=5)" 2>/dev/null; \
	then option='--extra-index-url $(CPU_TORCH)'; fi; \
	echo "installing into $(VENV) $$option"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$option --editable '.[dev]'
	touch $@

train: install
	$(BIN)/sdsearch train quickstart

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
