# Variables for people who bring their own Python or torch; docs/contributing.md explains them.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?= -n auto --maxprocesses=4 --dist=loadfile
OLDEST_VENV ?= .venv-oldest
MACHINES ?=
GPU_JSON ?= results/gpu/bench_hco.json
GPU_SHAPES ?= 128x56x56x96 128x28x28x192 128x14x14x384 128x7x7x768 1x256x256x60 1x512x512x60 1x1024x1024x60
C_FILES = kernels/csrc/* tests/kernels/emulator/*
SANITIZER := $(shell command -v compute-sanitizer)

# From the checkout, in front of what the caller's PYTHONPATH names.
CHECKOUT := PYTHONPATH=".$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON)
ifeq ($(strip $(VENV)),)
RUN := $(CHECKOUT)
else
RUN := $(VENV)/bin/python
endif

.PHONY: help setup demo test test-oldest lint docs dist gpu

help:
	@echo "make demo   install into $(or $(strip $(VENV)),nothing) and run the demonstration: restore two photographs, train for a minute"
	@echo "make test   the same installation, then all of lint and pytest"
	@echo "make setup  the installation alone"
	@echo "make lint   ruff, clang-format, codespell and pyright alone"
	@echo "make docs   the documentation as a site, in results/site"
	@echo "make dist   source archive and wheels, in dist; needs the release extra; MACHINES=aarch64 adds a wheel for those"
	@echo "make test-oldest  the tests with the oldest versions of all dependencies, in $(OLDEST_VENV)"
	@echo "make gpu    CUDA kernels, operator and network tests and benchmarks on a GPU, with PYTHON's own torch; installs nothing"
	@echo "variables   PYTHON=$(PYTHON) VENV=$(VENV) (empty: use PYTHON as it is) PIP_ARGS='$(PIP_ARGS)' PYTEST_ARGS='$(PYTEST_ARGS)'"

setup:
ifneq ($(strip $(VENV)),)
	@$(PYTHON) scripts/environment.py --venv "$(VENV)" --pip-args="$(PIP_ARGS)"
endif

demo: setup
	$(RUN) -m vheatir demo

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -c "import clang_format; clang_format.clang_format()" --dry-run --Werror $(C_FILES)
	$(RUN) -m codespell_lib
	$(RUN) scripts/check_types.py

# One thread for each test process: the processes share the cores.
test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(PYTEST_ARGS)

# The lower bounds of pyproject.toml, all at once.
test-oldest: setup
	$(RUN) scripts/oldest.py --venv "$(OLDEST_VENV)"
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest $(PYTEST_ARGS)

docs: setup
	$(RUN) -m mkdocs build --strict

dist: setup
	$(RUN) scripts/build_packages.py $(addprefix --machine ,$(MACHINES))

# The CUDA kernels first, by themselves: compiled, against float64, under the sanitizer; then all else, as it runs without
# VHEATIR_CUDA; then the benchmark, with the kernels as the default.
gpu:
	$(CHECKOUT) -m pytest tests/kernels/cuda/test_cuda_values.py tests/kernels/cuda/test_cuda_dispatch.py tests/kernels/cuda/test_cuda_build.py
ifneq ($(SANITIZER),)
	for tool in memcheck racecheck synccheck; do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(CHECKOUT:$(PYTHON)=) $(SANITIZER) --tool $$tool --error-exitcode 1 \
			$(PYTHON) -m pytest -q tests/kernels/cuda/test_cuda_values.py -k "gpu and (value_and_gradients or pieces)" || exit 1; \
	done
endif
	$(CHECKOUT) -m pytest tests/kernels tests/backbone tests/vheatir/archs/test_arch.py tests/vheatir/data/test_batch_degradations.py --device cuda
	mkdir -p $(dir $(GPU_JSON))
	VHEATIR_CUDA=1 $(CHECKOUT) -m vheatir bench hco --device cuda --dtype bfloat16 --shape $(GPU_SHAPES) --backward --json $(GPU_JSON)
