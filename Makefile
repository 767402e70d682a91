# Two commands matter: `make demo` and `make test`. Both set up a virtual environment in .venv first,
# on a machine that has only Python; a second call finds it ready.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TRL := .venv-trl/bin/python
PEER := --peer $(TRL) --peer-script benchmarks/trl_ppo.py

# An older processor, as far as PyTorch, oneDNN and MKL let one be played;
# `test-kernels` goes through them with one thread and with two.
SSE41 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2
# A file's tests share what they train, so one process has all of a file: nothing is trained twice.
# (But for the files whose tests share nothing: `APART` in tests/conftest.py.)
PARALLEL := -n auto --dist loadfile --maxprocesses

.PHONY: setup demo verify test test-slow test-long test-numeric test-kernels test-ecosystem \
	test-ecosystem-long test-browser test-wheel test-versions wheel docs check numbers exact \
	bench bench-quick bench-gpu bench-trl bench-learning reward-models clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: setup
	$(BIN)/tokenrlhf train --eval-responses 256

verify: setup
	$(BIN)/tokenrlhf verify

test: setup
	$(BIN)/python -m pytest $(PARALLEL) 4

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not long" $(PARALLEL) 2

# Half an hour and more: full builds of the bundled models, further seeds of what `test-slow` claims
# about learning with one, all of the wrong input of which it has a part.
test-long: setup
	$(BIN)/python -m pytest -m "long and not ecosystem" $(PARALLEL) 2

# Minutes: what goes through kernels, under the kernels that are furthest from a processor of today.
test-numeric: setup
	$(SSE41) $(BIN)/python -m pytest -m numeric $(PARALLEL) 4

# Hours: everything but the ecosystem, under each of the kernels.
test-kernels: setup
	set -e; for kernels in "$(SSE41)" "$(AVX2)"; do for threads in 1 2; do \
		echo "$$kernels OMP_NUM_THREADS=$$threads"; \
		env $$kernels OMP_NUM_THREADS=$$threads \
			$(BIN)/python -m pytest -m "not ecosystem and not browser and not wheel" $(PARALLEL) 2; \
	done; done

ECOSYSTEM := "ecosystem and not long"

# Tianshou 2.0 pins a virtualenv that it does not import and that no current filelock satisfies;
# OpenEnv 0.10 asks for a web interface that is not used here, and that wants an older Pillow.
test-ecosystem: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,ecosystem]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps tianshou openenv
	$(BIN)/python -m pytest tests/ecosystem -m $(ECOSYSTEM) -n auto --maxprocesses 2

test-ecosystem-long:
	$(MAKE) test-ecosystem ECOSYSTEM='"ecosystem and long"'

# selenium downloads no browser: it is told where Debian's are. What measures time runs alone.
test-browser: setup
	@for program in chromium chromedriver; do \
		command -v $$program > /dev/null || { \
			echo "$$program is missing; as root: apt-get install chromium chromium-driver" >&2; exit 1; \
		}; \
	done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,browser]"
	$(BIN)/python -m pytest tests/report -m browser --ignore tests/report/test_page_speed.py $(PARALLEL) 2
	$(BIN)/python -m pytest tests/report/test_page_speed.py -m browser

# The wheel from the source distribution, so that this holds everything as well.
wheel: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	@ls dist

# In an empty environment outside of this folder.
test-wheel: wheel
	$(BIN)/python -m pytest -m wheel

# The suite's part on contracts and numbers, with the oldest and the newest libraries, under each
# Python of this machine; renews the table of docs/versions.md.
test-versions: setup
	PYTHONPATH=tests $(BIN)/python -m support.versions

# Into build/docs, without a warning. The variable silences an advertisement, not a warning of ours.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

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
	$(BIN)/python benchmarks/bench_wrappers.py
	$(BIN)/python benchmarks/bench_memory.py
	$(BIN)/python benchmarks/bench_options.py
	$(BIN)/python benchmarks/bench_plan.py
	$(BIN)/python benchmarks/bench_ranks.py
	$(BIN)/python benchmarks/bench_reading.py

bench-quick: setup
	$(BIN)/python benchmarks/bench_quick.py

bench-gpu: setup
	$(BIN)/python benchmarks/bench_gpu.py $(if $(wildcard $(TRL)),$(PEER))

# TRL needs other versions: an environment of its own.
bench-trl: setup
	test -x $(TRL) || $(PYTHON) -m venv .venv-trl
	$(TRL) -m pip install --quiet --disable-pip-version-check torch==2.13.0 trl==1.12.0
	$(BIN)/python benchmarks/bench_ppo.py $(PEER)
	$(BIN)/python benchmarks/bench_ppo.py --value-head separate --without-stock $(PEER)
# Reward models: PAIRS is a file of preference pairs, LM the folder of a causal LM.
	$(if $(and $(PAIRS),$(LM)),$(BIN)/python benchmarks/bench_reward_model.py $(PAIRS) --lm $(LM) \
		--peer $(TRL) --peer-script benchmarks/trl_reward.py)

# How fast it learns, over five seeds: hours. TASK=FOLDER adds a real task (docs/real-model.md), and
# TRL on it where it is installed.
bench-learning: setup
	$(BIN)/python benchmarks/bench_learning.py learning.jsonl --tasks exact reviews $(TASK)
	$(if $(and $(TASK),$(wildcard $(TRL))),$(BIN)/python benchmarks/bench_learning.py learning.jsonl --tasks $(TASK) --peer $(TRL))
	$(BIN)/python benchmarks/bench_learning.py learning.jsonl --table

# The tables and figures of docs/reward-models.md, into OUT, which is gone on with; INTO=docs puts
# them into the page. Less than 90 minutes on two cores; QUICK=1 takes some minutes, with tiny sizes.
OUT ?= runs/reward-models-page$(if $(QUICK),-quick)
reward-models: setup
	$(BIN)/python benchmarks/reward_models_page.py $(OUT) $(if $(QUICK),--quick) $(if $(INTO),--into $(INTO))

exact: setup
	$(BIN)/python benchmarks/bench_exact.py

clean:
	rm -rf .venv .venv-trl .venv-versions build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
