# `make demo` and `make test` do all the set-up themselves, in .venv beside this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes with one thread each: most tests are small, and threads of several processes would fight for the cores.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test test-slow test-ci-slow fuzz torture lint bench site release clean

demo: $(STAMP)
	$(BIN)/ssamba demo --out demo

test: $(STAMP) lint
	$(PYTEST)

# What takes long: runs that are killed at several points, several processes, CUDA C++ emulated and compiled, whole grids.
test-slow: $(STAMP)
	$(PYTEST) -m 'slow and not gpu'

# The part of them that continuous integration runs: every sixth of those that do not take minutes each (tutorials, long
# damage runs). SHARD=1/6 to 5/6 are the others.
SHARD ?= 0/6
test-ci-slow: $(STAMP)
	$(PYTEST) -m 'slow and not gpu and not long' --shard=$(SHARD) --durations=15

# Damaged files of every kind, CASES of them from SEED; findings are written to fuzz-findings/.
CASES ?= 1000000
SEED ?= 0
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m fuzz.campaign --cases $(CASES) --seed $(SEED) --jobs $(JOBS)

# Runs killed at moments drawn from a seed, and bits flipped in their files: about an hour.
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/rounds.py --rounds 200 --seed $(SEED) --jobs $(JOBS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/flips.py --flips 200 --seed $(SEED) --jobs $(JOBS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/scan_cpu.py

# The documents as a site, in build/site: python -m http.server --directory build/site
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Wheel and source archive in dist, checked and tried in a fresh environment; nothing is published.
release: $(STAMP)
	$(BIN)/python dev/check_release.py --out dist --constraint constraints.txt

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache

# Debian and Ubuntu ship python3 without venv: then say what to install instead of failing obscurely.
$(STAMP): pyproject.toml constraints.txt constraints-dev.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing; install it with: apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --constraint constraints-dev.txt --editable '.[dev]'
	@touch $@
