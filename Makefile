# Everything happens in .venv, which the first target that needs it creates. A stamp file in it says that an install is
# done; only a change of pyproject.toml or constraints.txt makes it stale, so a second run starts at once.

# A python3.11 may be on the PATH and refuse to run (version managers leave such stubs), hence the trial.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
# Test processes, each with one thread: two of them are faster than one process with two threads. A file's tests stay
# in one process (loadfile), so that what they share is computed once.
WORKERS ?= 2
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --constraint constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
CACHES := build dist docs/_build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis chainrule-report.html chainrule-report.json

.PHONY: help demo test lint docs dist format clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/.all  ## set up, then run `chainrule demo` (ARGS=... are passed on)
	@$(BIN)/chainrule demo $(ARGS)

test: .venv/.test  ## set up, then run the tests (ARGS="-k name", WORKERS=0 for one process)
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: .venv/.dev  ## ruff, pyright and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# Without this, pyright asks npm whether there is a newer pyright.
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports --no-logo

docs: .venv/.docs  ## the documentation as a site, in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

dist: .venv/.dev  ## a wheel and a source distribution, in dist
	$(BIN)/python -m build --outdir dist .

format: .venv/.dev  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built or cached, except .venv (it holds torch)
	rm -rf $(CACHES)
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# The installs form a line, so that `make -j` never runs two pips in one environment. pip's output goes to
# stderr: stdout is the program's.
.venv/.all: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("make: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo "setting up .venv (the first time takes minutes: torch is large)" >&2
	@$(PIP) --editable ".[all]" >&2
	@touch $@

.venv/.test: .venv/.all
	@$(PIP) --quiet --editable ".[all,test]" >&2
	@touch $@

.venv/.dev: .venv/.test
	@$(PIP) --quiet --editable ".[all,test,dev]" >&2
	@touch $@

.venv/.docs: .venv/.dev
	@$(PIP) --quiet --editable ".[all,test,dev,docs]" >&2
	@touch $@
