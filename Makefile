# Two commands do everything on a fresh clone: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
QUICK  := runs/garments

.PHONY: quickstart test test-slow torture lint docs dist bench bench-gpu clean

# One marker per set of extras, so that a second call does nothing.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.report: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[report]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.report

# Each file by the command that makes it, so that a second call goes on where the first ended. The network is small, and
# its first exit costs a seventh of the whole, so that leaving early shows.
$(QUICK)/weights.safetensors: | $(VENV)/.report
	$(BIN)/offramp train --data garments --network auto exits=4 base=1 step=1 step_mode=lin_grow channels=8 growth=4 \
	  head_channels=32 --objective power-sqrt --epochs 6 --out $(QUICK)

$(QUICK)/policy.json: $(QUICK)/weights.safetensors
	$(BIN)/offramp certify $(QUICK)

$(QUICK)/bench.json: $(QUICK)/policy.json
	$(BIN)/offramp bench $(QUICK) --batches 1 --rounds 5 --seconds 20

quickstart: $(QUICK)/bench.json   ## train with the paper's method on images that ship, certify, time; what it is worth
	$(BIN)/offramp evaluate $(QUICK)

# Modules are compiled once, and not by every process that a test starts.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.dev            ## everything but the slow tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.dev       ## the slow tests alone
	$(BIN)/python -m pytest -m slow

torture: $(VENV)/.dev         ## kills, flipped bits, hostile folders, bombs, closed streams, damaged files, in one table; an hour
	$(BIN)/python tests/torture.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev            ## the site, guides and API reference, in site/index.html; a broken link is an error
	$(BIN)/zensical build --strict --clean

$(VENV)/.dist: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'build>=1.2' 'twine>=6.1'  # 6.1 knows metadata 2.4
	@touch $@

dist: $(VENV)/.dist           ## wheel and sdist in dist/, checked; nothing is published
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/.dev           ## every benchmark, quickly, in one table; warns of what is worse than recorded in two processes
	$(BIN)/python benchmarks/all.py

bench-gpu: $(VENV)/.dev       ## training on a GPU in every form, data and five seeds included; says so where there is none
	@mkdir -p runs
	$(BIN)/python benchmarks/gpu.py --out runs/bench-gpu.json

clean:
	rm -rf $(VENV) runs site dist .cache .pytest_cache .mypy_cache .ruff_cache
