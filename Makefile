# `make demo` and `make test` set up everything they need. `make help` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# An editable install links files one by one: a new or renamed module needs new links.
LINKS  := $(VENV)/.links-$(shell find optimizer passes export -name '*.*' -not -path '*/__pycache__/*' | LC_ALL=C sort | cksum | cut -d' ' -f1)

# Each worker and each process that a test starts would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test quick matrix triton check format schema clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(LINKS) ## Make a small real model and real data, and optimise it
	$(BIN)/prumux-opt --demo --force

test: check ## All checks and tests
	$(BIN)/pytest -q -n 2 --dist worksteal

quick: $(LINKS) ## Tests without the slow ones
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not slow"

matrix: $(LINKS) ## Every family with every kind of cut, precision and task
	PRUMUX_MATRIX=1 $(BIN)/pytest -q -n 2 tests/test_golden.py tests/model tests/export

triton: $(VENV)/triton-server/.installed ## Install a Triton server apart, and test what it serves
	$(BIN)/pytest -q tests/export/test_triton_server.py tests/bench/test_triton_server.py

check: $(LINKS) ## Lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(LINKS) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(LINKS) ## Write report.schema.json from the dataclasses of a report
	$(BIN)/python -m prumux.optimizer.report.json_schema

clean: ## Remove what was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.libraries: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prumux needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
# torch first and pinned: an open range may pull in gigabytes of CUDA libraries.
	$(BIN)/pip install -q -c constraints.txt setuptools torch
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation '.[cpu,hub,demo,plot,dev]'
	touch $@

$(VENV)/triton-server/.installed: triton-server.txt $(LINKS)
	rm -rf $(@D)
	$(BIN)/pip install -q --no-deps --no-compile --target $(@D) -r triton-server.txt
	touch $@

$(LINKS): $(VENV)/.libraries
	rm -f $(VENV)/.links-*
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@
