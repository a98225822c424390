# Everything runs in .venv of this checkout; `setup` makes it when it is missing.
#
#   make run ARGS="--config pipelines/configs/scenes_smoke.yaml"
#   make setup PYTHON=/opt/python3.12/bin/python3        another Python (3.11 or newer)
#   make setup PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#
# PIP_FLAGS go to every pip install. On Linux, PyPI's torch is the CUDA build (several GB); without a GPU, the index above has the
# CPU build of the same version.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.pararl-setup
PYTHON ?=
PIP_FLAGS ?=
ARGS ?=
# Test files run side by side; those that start Ray or whole programs are most of the time.
TEST_JOBS ?= 2

.PHONY: setup run test test-fast lint types check

setup: $(STAMP)

# torch goes in first and alone, so that nothing that depends on it can pick another version or build.
$(STAMP): pyproject.toml constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	    found=; \
	    for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3); do \
	        if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "make setup: error: no Python 3.11 or newer with its venv module (tried: $(or $(PYTHON),python3.11 to python3.14 and python3)); install one, or name it: make setup PYTHON=/path/to/python3" >&2; \
	        exit 1; \
	    fi; \
	    echo "making $(VENV) with $$found"; \
	    "$$found" -m venv $(VENV); \
	}
	@echo "installing the tested environment into $(VENV) (minutes, the first time)"
	$(PY) -m pip install --quiet $(PIP_FLAGS) "$$(grep '^torch==' constraints.txt)"
	$(PY) -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

run: setup
	$(PY) pipelines/pararl.py $(ARGS)

test: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -q --durations=10 -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

# The same without whole programs and without Ray clusters: what to run between two edits.
test-fast: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -q -m "not program" -n $(TEST_JOBS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

# Everything that CI runs.
check: lint types test
