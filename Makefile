PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# One more than there are cores, as tests wait for the processes that they start.
PYTEST := $(BIN)/pytest --numprocesses=$(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --maxprocesses=8 --dist=worksteal
UV := $(shell sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements.lock)

# Where Python keeps no bytecode, each start of an interpreter would compile torch again.
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

.PHONY: help setup demo test test-long check bench lock clean
help:  ## show these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

setup: .venv/ready  ## make .venv with the locked packages and this checkout (done by all the others)

# Made once, and again when the lock or the package's description changes.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes $(COMPILE) requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-build-isolation --no-deps --editable .
	$(if $(COMPILE),$(BIN)/python -m compileall -q src)
	touch $@

demo: setup  ## train and test the baseline on the embedded data set
	$(BIN)/onebox-train experiment=baseline trainer.max_epochs=30

test: setup  ## run the tests (ONEBOX_VOC_ROOT=FOLDER, which holds VOCdevkit, adds those on real data)
	$(PYTEST) -m "not long"

# Handed out one at a time, as some take minutes.
test-long: setup  ## run the long tests: kills by the hundred, fuzzed files, engines of sweeps from end to end
	$(PYTEST) --dist=load --maxschedchunk=1 -m long

check: setup  ## format, lint, types, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST) -m "not long"

bench: setup  ## measure speed as ratios and write outputs/bench.json
	$(BIN)/python -m benchmarks

lock: setup  ## write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements.lock

clean:  ## remove the environment and what tools leave behind (not data/ and outputs/)
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
