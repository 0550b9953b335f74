# Each target does all of its own set-up; repeated, it does only what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check format benchmarks clean help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,cluster]'
	touch $@

demo: $(VENV)/installed  ## watch a diffusion model copy its patients; writes demo/report.html
	$(BIN)/unalike demo --out demo

test: $(VENV)/installed-dev  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/installed-dev  ## lint, format, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src
	$(BIN)/lint-imports

format: $(VENV)/installed-dev  ## put the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(VENV)/installed-dev  ## measure speed and memory against others
	$(BIN)/python benchmarks/audit_search.py
	$(BIN)/python benchmarks/read_volumes.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/audit_calibration.py
	$(BIN)/python benchmarks/diffusion.py

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo
