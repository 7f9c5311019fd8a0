# Set-up, checks and builds; works with GNU make 3.81 and newer on Linux and macOS.
# Paths are relative throughout, so the checkout may lie below a folder with spaces in its name.

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
UV := 0.13.9

# torch and torchvision are built for each other: a newer torch from elsewhere, such as a CPU-only build
# in a local package folder, makes `import torchvision` fail. So their pair is chosen here.
TORCH := torch==2.11.0 torchvision==0.26.0

PY := .venv/bin/python
INSTALLED := .venv/installed
UNFINISHED := .venv/unfinished
USABLE := $(PY) -c "import pip, sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null

.PHONY: help run test test-slurm lock wheel clean

help:
	@echo "make run    set up, then pre-train on HOG and evaluate, on the embedded images; continues a stopped run"
	@echo "            ARGS=\"--seed 1 pretrain.epochs=5\" are handed on"
	@echo "make test   set up, then ruff, basedpyright and pytest; ARGS=\"-k hog\" are handed to pytest"
	@echo "make test-slurm  set up, then the tests on a real Slurm of this machine, which root installs (Debian)"
	@echo "make lock   requirements.lock anew from pyproject.toml; ARGS=--upgrade for newer versions"
	@echo "make wheel  set up, then sdist and wheel in dist/"
	@echo "make clean  remove all that the others made, .venv included, but no runs"
	@echo "PYTHON=python3.12 chooses another Python, WORKERS=4 more test processes."

run: $(INSTALLED)
	$(PY) -m mim_bench run --target hog --protocols knn,linear,baselines $(ARGS)

test: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m basedpyright
	$(PY) -m pytest -n $(WORKERS) $(ARGS)

test-slurm: $(INSTALLED)
	MIM_BENCH_REQUIRE_SLURM=1 $(PY) -m pytest -p no:xdist tests/slurm $(ARGS)

wheel: $(INSTALLED)
	rm -rf dist
	$(PY) -m build --no-isolation --outdir dist .

# The stamp is the last thing written. What an interrupted set-up left behind is thrown away, for a half
# installed package looks installed. Without uv, or where it finds no index, pip does the same, slower.
$(INSTALLED): requirements.lock pyproject.toml
	@if [ -e $(UNFINISHED) ] || ! $(USABLE); then $(MAKE) --no-print-directory .venv; fi
	@touch $(UNFINISHED)
	@echo "installing requirements.lock in .venv; the first time this takes minutes"
	@{ $(PY) -m pip install -qq uv==$(UV) && $(PY) -m uv pip sync --quiet --compile-bytecode --python $(PY) requirements.lock; } \
		|| { echo "without uv: pip installs the same, slower"; $(PY) -m pip install --quiet -r requirements.lock; }
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@mv $(UNFINISHED) $@

.PHONY: .venv
.venv:
	@$(PYTHON) -c "import sys; sys.exit('mim_bench needs Python 3.11 or newer, and $(PYTHON) is %d.%d; try make PYTHON=python3.12' % sys.version_info[:2] if sys.version_info < (3, 11) else 0)"
	@$(PYTHON) -m venv --clear .venv

lock:
	@$(USABLE) || $(MAKE) --no-print-directory .venv
	@$(PY) -m pip install -qq uv==$(UV)
	printf '%s\n' $(TORCH) | $(PY) -m uv pip compile --quiet --universal --python-version 3.11 \
		--fork-strategy fewest --extra dev --constraints - --annotation-style line \
		--custom-compile-command "make lock" $(ARGS) --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv dist build .pytest_cache .ruff_cache .hypothesis
	find mim_bench tests -name __pycache__ -prune -exec rm -rf {} +
