# make train:    install everything into .venv and run the quickstart recipe.
# make test:     install everything into .venv and run the checks of every change, the tests side by side
#                with one thread each.
# make test-all: and the tests that are marked as slow.
# All start from nothing but Python 3.10 or newer, a C++ compiler and a network. CUDA kernels are built
# where there is a GPU, or with ZOO_CUDA=1.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml zoo/ops/schemas.inc $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc')

ZOO_CUDA ?= $(if $(shell nvidia-smi -L 2>/dev/null),,0)
export ZOO_CUDA
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

.PHONY: train test test-all install lint docs clean

train: install
	$(BIN)/python -m zoo.train recipes/vision/vmamba/small.yaml

test: install lint
	$(PYTEST) -m "not slow"

test-all: install lint
	$(PYTEST)

install: $(VENV)/installed

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/python -m pip install -q -e ".[docs]" --no-build-isolation
	$(BIN)/mkdocs build --strict

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel ninja numpy torch torchvision
	touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info site zoo/_C*.so
