# `make help` lists the targets. Everything runs in .venv, which `make install` makes once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
# The tests that need it
SLURM := tests/cluster/test_runs.py tests/cluster/test_sweeps.py

.PHONY: help install quickstart test test-slow test-cluster test-slurm test-machines lint format tensorboard results lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
		awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

# The stamp is newer than what it was made from, or the installation is done again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; ok = sys.version_info >= (3, 11); \
		sys.exit(0 if ok else f"error: Python 3.11 or newer is needed, found {sys.version.split()[0]}. " \
		"Name another one: make install PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "error: cannot make $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "installing the pinned dependencies into $(VENV) (once; about 6 GB with the CUDA libraries)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(STAMP)  ## make .venv and install the pinned dependencies

quickstart: install  ## train a small ViT on built-in images: no download, 2 to 5 minutes on 2 CPU cores
	@$(BIN)/python train.py experiment=quickstart
	@echo
	@echo "Next, in this folder:"
	@echo "  source $(BIN)/activate"
	@echo "  tensorboard --logdir outputs"
	@echo "  python train.py experiment=quickstart model.depth=6 optimizer.lr=5e-4"
	@echo "  python train.py -m experiment=quickstart model.patch_size=4,8 trainer.max_epochs=2"
	@echo "  python train.py model=vit_small scheduler=warmup_cosine      (downloads CIFAR-10)"
	@echo "  python train.py --help"

test: install  ## run the tests (under 10 minutes on 2 cores)
	@$(BIN)/python -m pytest -m "not slow and not cluster" -n auto --maxprocesses 8 --dist worksteal

test-slow: install  ## run the long tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --maxprocesses 8 --dist worksteal

# Debian's packages are installed where that is allowed; otherwise the tests that need them are skipped, and say so.
test-cluster: install  ## run the tests on a SLURM of two nodes and a PostgreSQL, as root on Debian (under 10 minutes)
	@if ! { command -v slurmctld && ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1 && \
		command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		export DEBIAN_FRONTEND=noninteractive; \
		timeout 600 sh -c "apt-get update -qq && apt-get install -qq --no-install-recommends slurm-wlm munge iproute2 postgresql" \
			>/dev/null 2>&1 || echo "note: SLURM or PostgreSQL could not be installed; their tests are skipped"; fi
	@$(MAKE) --no-print-directory -j2 -k --output-sync=target test-slurm test-machines

# There is one SLURM and one pair of machines. Both wait more than they compute: their tests run side by side.
test-slurm: install
	@$(BIN)/python -m pytest $(SLURM) -rs

test-machines: install
	@$(BIN)/python -m pytest tests/cluster $(SLURM:%=--ignore=%) -rs

lint: install  ## check style (ruff) and types (mypy)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install  ## format the code and mend what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

tensorboard: install  ## watch and compare all runs in TensorBoard
	@$(BIN)/tensorboard --logdir outputs

results: install  ## write README's table of results from the claims in experiments/
	@$(BIN)/python reproduce.py --results README.md

lock:  ## renew requirements.lock from pyproject.toml (needs uv)
	@uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --upgrade --quiet --output-file requirements.lock

clean:  ## remove .venv and caches; data and outputs stay
	rm -rf $(VENV) .ruff_cache .mypy_cache .pytest_cache src/*.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
