# Every target sets up what it needs first. Works with the make 3.81 of macOS.

BIN := .venv/bin
WORKERS ?= 2
CONTRACT := deployment/feature_contract.json

.DEFAULT_GOAL := help
.PHONY: help setup demo year test up check lint format types features bench bench-serving clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

setup:  ## create .venv and install everything (again only when something changed)
	@sh deployment/local/setup.sh

demo: setup  ## the main job: from raw flights to a served, retrained, promoted and rolled-back model
	@$(BIN)/mlops demo

year: setup  ## 2013 unattended under Dagster's daemons: a table, a picture, and what must hold; goes on where it stopped
	@$(BIN)/mlops year

up: setup  ## Dagster, MLflow and the endpoint together, until Ctrl-C
	@exec $(BIN)/mlops up

test: setup  ## all tests, on WORKERS=2 processes
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

lint: setup  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup  ## rewrite the files as `make lint` wants them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup  ## mypy
	@$(BIN)/mypy

# Written where the registry is: mlops features contract > deployment/feature_contract.json
features: setup  ## is all that models in use read still declared? asks the contract under deployment/, if there is one
	@if [ -f $(CONTRACT) ]; then $(BIN)/python -m mlops_assets.cli features check --contract $(CONTRACT); \
	else echo "No $(CONTRACT): nothing to hold the features to."; fi

check:  ## what CI runs: lint, types, features, test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory features
	@$(MAKE) --no-print-directory test

bench: setup  ## side-by-side measurements against peers
	@$(BIN)/python -m benchmarks

bench-serving: setup  ## only the endpoint, against the servers that people use; needs wrk
	@$(BIN)/python -m benchmarks serving serving_swaps

clean:  ## delete .venv, caches and the state under .mlops
	rm -rf .venv .mlops .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
