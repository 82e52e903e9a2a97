# Each target sets up what it needs under .venv on first use and again when the requirements change.
# The exact versions stand in constraints.txt.

PYTHON ?= python3
BACKEND ?= numdiff
ENVS := .venv
INPUTS := pyproject.toml constraints.txt
PIP_INSTALL = bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $(CURDIR)/constraints.txt
FRAMEWORKS := torch jax tf numdiff

.PHONY: help demo test test-recipes test-kernels test-oldest bench evaluate docs lint clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

demo: $(ENVS)/demo-$(BACKEND)/.ready ## Ask which training digits are behind a wrong prediction (BACKEND=numdiff|torch|jax|tf)
	@$(ENVS)/demo-$(BACKEND)/bin/ihvp demo --backend $(BACKEND)

test: $(ENVS)/test/.ready ## Run all tests, each framework in a process of its own
	@PYTHON=$(CURDIR)/$(ENVS)/test/bin/python tests/run

test-recipes: $(ENVS)/recipes/.ready ## Run the recipes with the packages that they are for
	@TF_CPP_MIN_LOG_LEVEL=3 MPLBACKEND=agg $(ENVS)/recipes/bin/python -m pytest -q tests/docs/test_pages.py tests/ihvp_jax/test_restore.py -k 'recipes or restore'

test-kernels: $(ENVS)/test/.ready ## Run the core tests with each of OpenBLAS's kernels that this processor can run
	@PYTHON=$(CURDIR)/$(ENVS)/test/bin/python tests/kernels

test-oldest: $(ENVS)/oldest/.ready ## Run the contract of JAX and numdiff and the core tests on the lowest versions declared
	@for backend in numdiff jax; do $(ENVS)/oldest/bin/ihvp contract $$backend -q || exit 1; done
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(ENVS)/oldest/bin/python -m pytest -q tests/ihvp/solvers \
		tests/ihvp/eigen tests/ihvp/estimators tests/ihvp/operators tests/ihvp/weights tests/ihvp_jax/test_products.py

bench: $(ENVS)/bench/.ready ## Measure beside other libraries and write docs/performance (ALL=1; ONLY=solves prints)
	@$(ENVS)/bench/bin/python -m tests.benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(ALL),--all)

evaluate: $(ENVS)/bench/.ready ## Train again and judge all methods and other libraries; write docs/evaluation.md (RESUME=1 goes on)
	@$(ENVS)/bench/bin/python -m tests.evaluation $(if $(RESUME),--resume) $(if $(ONLY),--only $(ONLY))

docs: $(ENVS)/test/.ready ## Build the documentation into build/site; a warning is an error
	@$(ENVS)/test/bin/python -m doctest docs/_hooks/roles.py
	@NO_MKDOCS_2_WARNING=1 TF_CPP_MIN_LOG_LEVEL=3 MPLBACKEND=agg $(ENVS)/test/bin/mkdocs build --strict

lint: $(ENVS)/lint/.ready ## Check style, types and import rules
	@$(ENVS)/lint/bin/ruff check
	@$(ENVS)/lint/bin/ruff format --check
	@$(ENVS)/lint/bin/mypy
	@$(ENVS)/lint/bin/lint-imports

clean: ## Remove the environments
	rm -rf $(ENVS)

$(ENVS)/%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("ihvp needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(@D:/bin=) …"
	@$(PYTHON) -m venv $(@D:/bin=)

# torch goes first and alone: other packages that ask for any version of it would pull one that fits a GPU.
define TORCH
cd $(@D) && $(PIP_INSTALL) torch==$$(sed -n 's/^torch==//p' $(CURDIR)/constraints.txt)
endef

$(ENVS)/demo-torch/.ready: $(ENVS)/demo-torch/bin/python $(INPUTS)
	@$(TORCH)
	@cd $(@D) && $(PIP_INSTALL) --editable '$(CURDIR)[demo,torch]'
	@touch $@

$(ENVS)/demo-%/.ready: $(ENVS)/demo-%/bin/python $(INPUTS)
	@cd $(@D) && $(PIP_INSTALL) --editable '$(CURDIR)[demo,$*]'
	@touch $@

$(ENVS)/test/.ready: $(ENVS)/test/bin/python $(INPUTS) tests/example_plugin/pyproject.toml
	@$(TORCH)
	@cd $(@D) && $(PIP_INSTALL) --editable '$(CURDIR)[all,test,docs]' --editable $(CURDIR)/tests/example_plugin
	@touch $@

$(ENVS)/recipes/.ready: $(ENVS)/recipes/bin/python $(INPUTS)
	@$(TORCH)
	@cd $(@D) && $(PIP_INSTALL) --editable '$(CURDIR)[all,test,recipes]'
	@touch $@

$(ENVS)/oldest/.ready: $(ENVS)/oldest/bin/python $(INPUTS) tests/oldest.py
	@$(PYTHON) tests/oldest.py >$(@D)/lowest.txt
	@cd $(@D) && bin/python -m pip install --quiet --disable-pip-version-check --constraint lowest.txt \
		--editable '$(CURDIR)[influence,demo,jax,test]'
	@touch $@

$(ENVS)/bench/.ready: $(ENVS)/bench/bin/python $(INPUTS) tests/benchmarks/peers.txt
	@$(TORCH)
	@cd $(@D) && $(PIP_INSTALL) --editable '$(CURDIR)[all]'
	@cd $(@D) && $(PIP_INSTALL) --no-deps --requirement $(CURDIR)/tests/benchmarks/peers.txt
	@touch $@

$(ENVS)/lint/.ready: $(ENVS)/lint/bin/python $(INPUTS)
	@cd $(@D) && $(PIP_INSTALL) --editable '$(CURDIR)[lint]'
	@touch $@

.SECONDARY:
