# Every target works in a fresh clone: it makes the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEVICE ?= cpu
SCALE ?= 1

# Tests start many processes: with cached bytecode each starts in half the time, whatever the surroundings say.
test quick: export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test quick lint types docs check bench-merge bench-methods bench-suites bench-faults bench-mergekit clean

demo: $(VENV)/ready  ## train a base and experts on real data, merge them by every recipe in examples/, score all
	$(BIN)/python -m cuvee.evaluation.demo

test: $(VENV)/ready  ## all tests, under 15 minutes on 2 cores
	$(BIN)/python -m pytest -n 2

quick: $(VENV)/ready  ## the quick tests, under 2 minutes
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

docs: $(VENV)/ready  ## renew the pages of methods, edits and presets in docs/
	$(BIN)/python docs/write_methods.py

check: lint types test

bench-merge: $(VENV)/ready  ## copy floor, Cuvée and mergekit side by side
	$(BIN)/python benchmarks/merge_speed.py --device $(DEVICE) --scale $(SCALE)

bench-methods: $(VENV)/ready  ## every method: time, memory, its floor, mergekit and FusionBench (QUICK=--quick: 5 M)
	$(BIN)/python benchmarks/methods.py $(QUICK)

bench-suites: $(VENV)/ready  ## building and running every suite of experts: time, memory, size of the report (FULL=--full)
	$(BIN)/python benchmarks/suites.py --device $(DEVICE) $(FULL)

bench-faults: $(VENV)/ready  ## kill, fail and power-cut thousands of merges, and read 200,000 hostile files
	$(BIN)/python benchmarks/faults.py

# torch goes first and alone, so that the CPU build is taken where there is one.
$(VENV)/ready: pyproject.toml setup.py constraints.txt cuvee/tensors/_kernels.c cuvee/tensors/_digests.c cuvee/tensors/c_library.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

bench-mergekit: $(VENV)/ready  ## 235 recipes through mergekit and through Cuvée: what differs, and why
	$(BIN)/python benchmarks/against_mergekit.py

clean:
	rm -rf $(VENV) build dist *.egg-info
