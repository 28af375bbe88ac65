# Every target makes the virtual environment where it is missing or older than its pins.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2
DEMO ?= $(BIN)/prunus compare --model digits_cnn --data digits --target macs=0.5 --train-epochs 15 \
	--epochs 4 --batch-size 32 --seeds 0,1,2 --out runs/demo --resume
BENCH ?= coverage accounting

# Data and checkpoints for machines that cannot download them; tests that need them skip without.
ifndef PRUNUS_DATA
ifneq ($(wildcard ../shared/data),)
export PRUNUS_DATA := $(abspath ../shared/data)
endif
else
export PRUNUS_DATA
endif

# Containers often set it: every process of the tests would compile Prunus again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check style bench lowest clean
.DEFAULT_GOAL := help

help:  ## Show the targets
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@# Here for all cores, where pip takes one; some packages hold files for newer Pythons.
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib src || true
	@touch $@

demo: $(STAMP)  ## Compress a small network on handwritten digits and write the report to runs/demo
	@# Idle threads look for work for no more than a moment: beside another busy process they took its time.
	GOMP_SPINCOUNT=1000 $(DEMO)

test: $(STAMP)  ## Run the tests (WORKERS=2 processes, one thread each)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q --timeout=600 \
		-m "not bench"

check: $(STAMP)  ## Lint, format, types, layers, sizes, spelling: everything a change must pass
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/size_budget.py
	$(BIN)/codespell

style: $(STAMP)  ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## Measure again what fits half an hour (BENCH=names), and draw the tables
	for name in $(BENCH); do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python tools/render_tables.py

lowest:  ## Run the tests on the low ends of the ranges of pyproject.toml (.venv-lowest: gigabytes)
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q -r requirements.lowest -e ".[dev]"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(WORKERS) -q --timeout=900 -W default \
		-m "not bench"

clean:  ## Remove caches and runs; keeps the virtual environment
	rm -rf runs build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
