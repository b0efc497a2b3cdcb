# Everything a developer runs. `make` or `make help` lists the targets.
PYTHON ?= python3.11
# `make bench`: the peer harness and, if its peers are to run too, the folder with an environment for each.
PEERS ?= ../shared/peers
VENVS ?=
BENCH ?=
VENV := .venv
BIN := $(VENV)/bin
SEEDS := 200
JOBS := 2
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test ci format lint types unit integration faults soak packaging bench clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,flower]' --group test --group lint --group build
	@touch $@

setup: $(READY) ## Make .venv with everything in it

demo: $(READY) ## Watch an agent survive a kill -9: real Postgres, Redis and workers, no keys
	$(BIN)/pickaxe demo

test: $(READY) ## All tests, on Postgres and Redis they start themselves
	$(BIN)/python -m pytest -n 2 --dist loadfile

unit: $(READY) ## The tests that need no service
	$(BIN)/python -m pytest tests/unit

faults: $(READY) ## The whole fault suite, slow ones too, and a table of what it found
	$(BIN)/python -m pytest -n 2 -m "" tests/faults

soak: $(READY) ## Random programs under a nemesis, SEEDS=200 of them, JOBS=2 at a time
	$(BIN)/python -m tests.faults.soak --seeds $(SEEDS) --jobs $(JOBS)

bench: $(READY) ## Measure, and write benchmarks/README.md: PEERS=dir VENVS=dir BENCH=--quick
	$(BIN)/python -m benchmarks --peers '$(PEERS)' $(if $(VENVS),--venvs '$(VENVS)') $(BENCH)

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY) ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY) ## Check types, strictly
	$(BIN)/mypy

ci: lint types test ## All that CI checks

clean: ## Remove what was built
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
