# make demo   the whole street on a real model, in its own environment
# make test   the fast tests      make check   format, lint, types, architecture
VENV ?= .venv
PYTEST = $(VENV)/bin/python -m pytest
export VENV

.PHONY: setup demo test test-slow test-gpu interop check format clean

setup:
	@sh scripts/setup.sh

demo:
	@sh scripts/demo.sh

test: setup
	$(PYTEST) -m "not slow and not gpu and not interop" $(ARGS)

test-slow: setup
	$(PYTEST) -m "slow and not gpu and not interop" $(ARGS)

test-gpu: setup
	$(VENV)/bin/python scripts/test_gpu.py $(ARGS)

# every client that can be installed, their tests, and docs/interop.md anew (an hour, gigabytes; MODEL names the model)
interop: setup
	@sh scripts/interop.sh

check: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PYTEST) -q tests/test_architecture.py tests/test_dockerfile.py tests/lobby

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
