# Every target makes the virtual environment first where it needs one; the tests themselves never install anything.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup smoke quick test test-fast check fix bench gpu results clean

setup: $(STAMP)
	@bash slurm/install_system_packages.sh

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: install Python 3.11, or say make setup PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,tensorboard]'
	@touch $@

# The main job, small: 30 runs on this machine, then the report. Ends with the path of the page.
smoke: setup
	$(BIN)/python benchmarks/launch.py --suite dmc6 --seeds 5 --preset smoke
	$(BIN)/python analysis/report.py runs/smoke --out report/smoke

# Cartpole swingup from pixels in about two hours of one core (four without bfloat16), then the report.
quick: setup
	$(BIN)/python benchmarks/launch.py --tasks cartpole_swingup --seeds 1 --preset quick
	$(BIN)/python analysis/report.py runs/quick --out report/quick

# What CI runs: format, lint, types, every test, every benchmark once without its limits.
test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not slurm' --durations=15
	$(BIN)/pytest -q -m slurm --durations=5
	$(BIN)/pytest -q benchmarks/speed --benchmark-disable -o addopts= --durations=5

check: test

# For daily use: in two processes, each file in one of them.
test-fast: setup
	$(BIN)/pytest -q -n 2 --dist loadfile -m 'not slow and not slurm and not gpu'

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Speed beside plain references, with limits: on an idle machine, or with OMP_NUM_THREADS=1 on a busy one.
bench: setup
	$(BIN)/pytest -q benchmarks/speed --benchmark-only -o addopts=

# On a machine with a GPU: all that README says of GPUs, measured on yours.
gpu: setup
	@$(BIN)/python -c "import torch; raise SystemExit(not torch.cuda.is_available() and 'torch sees no GPU: python -m planet.doctor')"
	$(BIN)/pytest -q -m gpu --durations=5
	$(BIN)/pytest -q benchmarks/speed -m gpu --benchmark-only -o addopts=
	$(BIN)/python -m benchmarks.speed.gpu_kernels
	$(BIN)/python -m planet.profile --device cuda --precision bfloat16
	$(BIN)/python -m planet.profile --device cuda --precision float32

# README's results block, results/README.md and the figures, from the run directories in results/.
results: setup
	$(BIN)/python analysis/readme_results.py

clean:
	rm -rf report .pytest_cache .ruff_cache
