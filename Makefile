# make study: the whole study. make test: the tests. Both make the environment first, in .venv.
#   CONFIG=config/gpu.yaml   another study: overlays, left to right (settings: config/README.md)
#   LOCK=requirements/lock-torch211.txt   other pins: torch 2.11, transformers 5.17, Python 3.12
#   CORES=4                  for what is not timed; timed jobs run one at a time whatever this says

VENV ?= .venv
CORES ?= 1
CONFIG ?=
LOCK ?= requirements/lock.txt
BIN := $(VENV)/bin

# The first Python here that runs and that pyproject.toml allows.
IS_SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,\
	$(shell $(name) -c '$(IS_SUPPORTED)' 2>/dev/null && echo $(name))))

# The environment is the one made here, whatever the caller's shell has active.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: study test check lock env

study: env
	@$(BIN)/python scripts/unlock_if_dead.py
	@$(BIN)/python scripts/run_study.py --cores $(CORES) $(if $(CONFIG),--configfile $(CONFIG))
	@$(BIN)/python scripts/show_results.py

# A file's tests stay in one process, for they share models and studies.
test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/python scripts/lint_workflow.py
	$(BIN)/python scripts/check_test_names.py

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml $(LOCK)
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 found; name one: make env PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c $(LOCK) -e '.[workflow,gpu,test]'
	@touch $@

# The pins of every extra, from PyPI. Torch pins its own CUDA libraries, so they are left out here:
# the same lock then serves torch's CPU build. lock-torch211.txt serves machines that have
# transformers 5.17, which no hub from 2.0 on imports: its pins are those of an installation of
# torch 2.11 and transformers 5.17 into Python 3.12 (pip freeze).
lock:
	uv pip compile --python-version 3.11 --all-extras --no-annotate --no-header --no-emit-index-url \
		--upgrade pyproject.toml | grep -Ev '^(nvidia-[^m]|cuda-|triton)' > requirements/lock.txt
