# Everything that people do with a clone. `make` alone lists it.
PYTHON ?= python3
VENV ?= .venv
# A build of torch for your machine (CUDA version, CPU only) can be named here; skipped where torch is importable.
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_METHODS ?= $(patsubst benchmarks/plain_%.py,%,$(wildcard benchmarks/plain_*.py))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two stamps: what the demo needs, and what developers need on top.
BASE := $(VENV)/.base
DEV := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help setup demo bundles test test-label test-deploy coverage lint format bench docs site build clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml | $(BIN)/python
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install "$(TORCH)"
	$(PIP) install -e .
	@touch $@

$(DEV): $(BASE)
	$(PIP) install -e ".[dev]"
	@touch $@

setup: $(DEV)  ## Virtual environment in .venv with everything for development

demo: $(BASE)  ## Synthetic data -> four trainings -> report, on any laptop
	$(BIN)/monai-ssl demo $(DEMO_ARGS)

bundles: $(BASE)  ## Render bundles/*/bundle.yaml into complete bundles, and the README's table of methods
	$(BIN)/python -m monai_ssl.bundle.render

test: $(DEV)  ## All tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" -n 2 $(PYTEST_ARGS)

# MONAI Label wants NumPy 1 and pydicom 2, the Deploy SDK pydicom 3: an environment for each. Nothing is left to the
# resolver that would move PyTorch; sam2, which MONAI Label asks for, is built against the PyTorch that is there.
LABEL := .venv-label
LABEL_PIP := $(LABEL)/bin/python -m pip --disable-pip-version-check
LABEL_PINS := torch==2.13.0 torchvision==0.28.0

$(LABEL)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LABEL)
	$(LABEL_PIP) install $(LABEL_PINS) setuptools wheel
	SAM2_BUILD_CUDA=0 $(LABEL_PIP) install --no-build-isolation $(LABEL_PINS) "monailabel==0.8.5" "monai==1.6.1" \
	    "pydicom<3" "pynetdicom<3" "dicomweb-client<0.60" "hatchling>=1.27" editables pytest
	$(LABEL_PIP) install --no-build-isolation -e . $(LABEL_PINS) "numpy<2" "pydicom<3"
	@touch $@

test-label: $(LABEL)/.ready  ## MONAI Label's server with real scans (MONAI_SSL_DATA), in its own environment
	$(LABEL)/bin/python -m pytest tests/label $(PYTEST_ARGS)

DEPLOY := .venv-deploy
DEPLOY_PIP := $(DEPLOY)/bin/python -m pip --disable-pip-version-check

$(DEPLOY)/.ready: pyproject.toml
	$(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY_PIP) install torch==2.13.0
	$(DEPLOY_PIP) install torch==2.13.0 monai==1.6.1 monai-deploy-app-sdk==4.0.0 pytest -e ".[dicom]"
	@touch $@

test-deploy: $(DEPLOY)/.ready  ## The example app of MONAI Deploy, in its own environment
	$(DEPLOY)/bin/python -m pytest tests/deploy/test_deploy_app.py $(PYTEST_ARGS)

coverage: $(DEV)  ## The same with coverage and its gate
	$(BIN)/python -m pytest -m "not slow" -n 2 --cov --cov-report=term $(PYTEST_ARGS)

lint: $(DEV)  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy monai_ssl

format: $(DEV)  ## Let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: export THP_MEM_ALLOC_ENABLE ?= 1
bench: $(DEV)  ## Training steps and inference against plain readings of the published code; waiting for data
	for method in $(BENCH_METHODS); do $(BIN)/python benchmarks/step.py --method $$method || exit; done
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/pool.py

docs: $(DEV)  ## Examples in docstrings, links and commands in the documentation
	$(BIN)/python -m pytest --doctest-modules monai_ssl --ignore=monai_ssl/deploy/label.py -q -p no:cacheprovider
	$(BIN)/python -m pytest tests/test_docs.py -q -p no:cacheprovider

site: $(DEV)  ## Documentation site in build/site; a warning is an error
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d build/doctrees docs build/site
	@echo "build/site/index.html"

build: $(DEV)  ## Wheel and source archive in dist/
	$(BIN)/python -m build

clean:  ## Remove caches and build products; .venv, runs and data stay
	rm -rf build dist htmlcov .coverage .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
