# Two commands matter: `make demo` and `make test`. Both set up a virtual environment in .venv first,
# on a machine that has only Python; a second call finds it ready.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo verify test test-slow check numbers exact bench bench-quick \
	bench-gpu clean

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

bench-quick: setup
	$(BIN)/python benchmarks/bench_quick.py

bench-gpu: setup
	$(BIN)/python benchmarks/bench_gpu.py

exact: setup
	$(BIN)/python benchmarks/bench_exact.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
