# Two commands matter: `make demo` and `make test`. Both set up a virtual environment in .venv first,
# on a machine that has only Python; a second call finds it ready.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo verify test test-slow test-ecosystem check numbers exact bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: setup
	$(BIN)/tokenrlhf train

verify: setup
	$(BIN)/tokenrlhf verify

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Tianshou 2.0 pins a virtualenv that it does not import and that no current filelock satisfies.
test-ecosystem: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,ecosystem]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps tianshou
	$(BIN)/python -m pytest -m ecosystem -n auto --maxprocesses 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

numbers: setup
	$(BIN)/python benchmarks/bench_core.py

bench: setup
	$(BIN)/python benchmarks/bench_ppo.py
	$(BIN)/python benchmarks/bench_rollout.py
	$(BIN)/python benchmarks/bench_env.py
	$(BIN)/python benchmarks/bench_memory.py

exact: setup
	$(BIN)/python benchmarks/bench_exact.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
