# The two commands a newcomer needs: `make reproduce` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup parity reproduce test test-all lint bench clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "setting up .venv (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

reproduce: setup
	@$(BIN)/jaxsat reproduce saturation

# What the tests hold ours against; torch is the largest. Tests are skipped where it is not there.
parity: .venv/.parity

.venv/.parity: .venv/.done
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt 'torch==2.13.0'
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

# Most of the time is compiling: left unoptimised, tests/model/test_heads.py takes 83 CPU-seconds instead of 124.
test: parity
	XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true $$XLA_FLAGS" \
	$(BIN)/pytest -n 2 --dist loadfile -m 'not slow'

test-all: parity
	$(BIN)/pytest -n 2 --dist loadfile

.venv/.audit: .venv/.done
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,audit]'
	@touch $@

lint: .venv/.audit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/python .ci/audit.py

bench: parity
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build *.egg-info
