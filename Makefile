# The two commands a newcomer needs: `make reproduce` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup reproduce test test-all lint bench clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "setting up .venv (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

reproduce: setup
	@$(BIN)/jaxsat reproduce saturation

test: setup
	$(BIN)/pytest -n 2 --dist loadfile -m 'not slow'

test-all: setup
	$(BIN)/pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The rivals, of which torch is the largest, are only for this.
bench: setup
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt 'torch==2.13.0'
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build *.egg-info
