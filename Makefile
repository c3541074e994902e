# make train: install everything into .venv and run the quickstart recipe.
# make test:  install everything into .venv and run all checks, the tests side by side with one thread
#             each.
# Both start from nothing but Python 3.10 or newer, a C++ compiler and a network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml zoo/ops/schemas.inc $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc')

.PHONY: train test install lint docs clean

train: install
	$(BIN)/python -m zoo.train recipes/vision/vmamba/small.yaml

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

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
