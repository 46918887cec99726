# make demo   installs what a user needs into .venv and runs the main job
# make test   installs what a developer needs, then lint, types and tests; stops at the first failure
# make sweep  the tests that feel a processor's kernels, as on one with AVX2 alone and on one without
# make lint   lint, format and types alone
# make docs   installs what the site needs and builds it, strictly, in build/site (DOCS_ARGS for Sphinx)
# make clean  removes everything that was made here (.venv, build output, out/)
#
# Versions are pinned in constraints.txt. The build backend comes from the same pins (no build isolation),
# so nothing but the pinned torch is ever installed.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= 2
PYTEST_ARGS ?= -q -n $(JOBS) --dist loadfile

# Tests in which the last bits of a network's numbers, or how long it takes, could decide.
SWEEP := $(addprefix tests/, test_cli_sample.py test_files.py test_fit.py test_model.py test_pace.py test_quality.py \
	test_train.py test_diffusers_door_pipelines.py::test_a_pipeline_is_saved_with_it)

.PHONY: demo test sweep lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@$(BIN)/fewstep demo

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

sweep: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(PYTEST_ARGS) $(SWEEP)
	@OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
		$(BIN)/python -m pytest $(PYTEST_ARGS) $(SWEEP)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

docs: $(VENV)/.installed-docs
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m sphinx -W --keep-going -q -a -d build/doctrees $(DOCS_ARGS) docs build/site
	@echo "build/site/index.html"

clean:
	rm -rf $(VENV) build dist out src/*.egg-info .pytest_cache .ruff_cache

$(VENV)/.python: constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3 was found; install Python 3.11 or newer, or say make PYTHON=/path/to/python."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; install Python 3.11 or newer, or say make PYTHON=/path/to/python."; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(PIP) install -q -c constraints.txt pip setuptools wheel
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml
	$(PIP) install -q --no-build-isolation -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.python pyproject.toml
	$(PIP) install -q --no-build-isolation -c constraints.txt -e '.[docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/.python pyproject.toml
	$(PIP) install -q --no-build-isolation -c constraints.txt -e '.[dev]'
	$(PIP) install -q --no-deps -c constraints.txt k-diffusion  # what it asks for is not needed to sample
	@touch $@ $(VENV)/.installed $(VENV)/.installed-docs
