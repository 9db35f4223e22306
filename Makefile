# Everything here also works by hand; scripts/set_up.py says what is made where.

PYTHON ?= python3
BIN := .venv/bin
export TOKENPLACE_MODELS_DIR ?= $(CURDIR)/.cache/models
export GPU
UV := uv==0.13.9
PREFLIGHT := $(PYTHON) -m scripts.preflight
SET_UP := $(PYTHON) -m scripts.set_up

.DEFAULT_GOAL := help
.PHONY: help run test setup setup-test check lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 chooses the Python, ARGS='--donors 3' is handed to demo or pytest,"
	@echo "GPU=cuda (or vulkan, metal) has llama.cpp built for a graphics card."

run: setup ## set up what is missing, then a whole network on this machine: tokenplace demo
	@$(BIN)/tokenplace demo $(ARGS)

test: setup-test check ## set up what is missing, then every check and test
	@$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --cov $(ARGS)

setup: ## preflight, .venv, llama.cpp and the default model; done in no time when nothing changed
	@$(PREFLIGHT)
	@$(SET_UP) run

setup-test:
	@$(PREFLIGHT)
	@$(SET_UP) test

check: setup-test
# libp2p brings trio-typing, whose trio-stubs hide trio's own types from mypy.
	@rm -rf $(BIN)/../lib/python3.*/site-packages/trio-stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

lock: ## write requirements/*.lock anew from requirements/*.in
	@test -x .cache/uv/bin/uv || { $(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip install -q $(UV); }
	@for name in run test clients/openai-2 clients/openai-3; do .cache/uv/bin/uv pip compile --quiet --generate-hashes --python-version 3.11 --universal \
	  --no-emit-index-url --no-annotate --no-header --overrides requirements/overrides.txt $(LOCK_ARGS) \
	  requirements/$$name.in -o requirements/$$name.lock || exit 1; done

clean: ## remove what the others made: .venv, .cache with models and builds, leftovers
	rm -rf .venv .cache build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .ruff_cache .pytest_cache
	find tokenplace tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
