VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: help setup demo test check format bench clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.ready  ## Make the virtual environment (.venv)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup  ## Find, remove and prove the bias of a real model
	$(BIN)/biasdiff demo

test: setup  ## Run all tests, those with the real model included
	$(BIN)/python -m pytest

check: setup  ## Lint, format check, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Put the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## Measure the throughput of attribution against plain training
	$(BIN)/python benchmarks/attribution.py

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
