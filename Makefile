# `make bench` on a fresh machine makes the environment, measures, learns and writes a report. `make help` lists the rest.
#
# VENV=1 (default)   an environment in .venv, made with $(PYTHON) and held to $(CONSTRAINTS); needs a package index.
# VENV=0             $(PYTHON) as it is, without network: wattline alone is installed, into .site of this folder.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= 1
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
# lint changes folder: a relative path would point elsewhere from there.
CHOSEN := $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON))
# From the command line only: an unrelated A or OUT in the caller's environment must not steer a run.
PRESET = standard
ARGS =
OUT =
RUN =
A =
B =
TEST_ARGS =
ALL =

ROOMS := src/wattline cli collectors predictors reports suites
PACKAGE := pyproject.toml README.md LICENSE $(ROOMS)
comma := ,

# pip shows its progress to a person and keeps logs short.
QUIET := $(if $(MAKE_TERMOUT),,-q)
PIP_ENV := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# The package alone, from this folder, whatever the configuration of pip says. Builds leave copies in build/lib:
# a file removed since would come back from there.
PIP_PACKAGE = rm -rf build/lib build/bdist.*; $(PIP_ENV) PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0
PIP_PACKAGE_FLAGS := -m pip install -q --no-index --no-deps --no-build-isolation

# $(call once,PATHS,COMMANDS): run COMMANDS unless the target is newer than everything under PATHS, under a lock: of
# two makes at a time the second waits, and finds the work done. A folder counts as changed when a file has left it, and
# the target is as old as the beginning of its making, so that a change meanwhile counts too.
LOCK := $(if $(shell command -v flock),flock build/.make.lock)
newer = find $(1) -not -path "*/__pycache__*" -newer "$@" -print -quit
once = @mkdir -p build; $(LOCK) $(SHELL) $(.SHELLFLAGS) '[ -e "$@" ] && [ -z "$$($(newer))" ] || \
  { touch build/.begun; $(2); touch -r build/.begun "$@"; }'

ifeq ($(VENV),1)
  RUN_PYTHON := $(CURDIR)/.venv/bin/python
  # One stamp for each choice of constraints: another choice installs again.
  CHOICE := $(subst /,_,$(CONSTRAINTS))
  RUNTIME := .venv/.runtime@$(CHOICE)
  DEV := .venv/.dev@$(CHOICE)
else ifeq ($(VENV),0)
  RUN_PYTHON := PYTHONPATH="$(CURDIR)/.site$${PYTHONPATH:+:$$PYTHONPATH}" $(CHOSEN)
  RUNTIME := .site/.installed
  DEV := .site/.installed
else
  $(error VENV must be 0 or 1, not '$(VENV)')
endif
WATTLINE := $(RUN_PYTHON) -m wattline.cli

.PHONY: docs-figures help bench smoke report compare test lint wheel clean runtime dev FORCE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	echo
	echo '  VENV=0 PYTHON=python3   use that Python with what it has installed, without network'
	echo '  CONSTRAINTS=file        versions to hold .venv to (empty: none); default constraints.txt'

bench: runtime ## measure, fit the predictor, write the report (PRESET=standard OUT=folder ARGS="--budget 10m")
	@$(WATTLINE) bench --preset $(PRESET) $(if $(OUT),--out "$(OUT)") $(ARGS)

smoke: PRESET = smoke
smoke: bench ## the same with the smallest preset, to see that everything works

report: runtime ## write the report of a run again (RUN=folder; default: the newest under runs/)
	@run="$(RUN)"
	if [ -z "$$run" ]; then run=$$(ls -td runs/*/run.json 2>/dev/null | head -n 1 || true); run=$${run%/run.json}; fi
	if [ -z "$$run" ]; then
	  echo 'there is no run under runs/; `make bench` makes one, RUN= names another folder' >&2; exit 2
	fi
	$(WATTLINE) report "$$run" $(ARGS)

compare: runtime ## compare two runs (A=folder B=folder ARGS="--fail-on slower:3%")
	@if [ -z "$(A)" ] || [ -z "$(B)" ]; then
	  echo 'two run folders are needed: make compare A=runs/one B=runs/two' >&2; exit 2
	fi
	$(WATTLINE) compare "$(A)" "$(B)" $(ARGS)

# All of them in a few processes at once, files kept together; what is chosen by hand runs in one, as benchmarks must.
# An existing Python (VENV=0) need not have pytest-xdist.
TEST_JOBS = $(if $(filter 1,$(VENV)),$(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 4 ? n : 4))),1)
test: dev ## run the tests (TEST_ARGS="-k name")
	@$(RUN_PYTHON) -m pytest $(if $(TEST_ARGS),$(TEST_ARGS),$(if $(filter-out 1,$(TEST_JOBS)),-n $(TEST_JOBS) --dist loadfile))

# mypy reads a plain install from another folder: neither an editable install nor the checkout can stand in for it.
# Outside git ruff does not read .gitignore: the copies are excluded by name.
lint: build/lint-site/.installed ## ruff, and mypy (strict) on the installed package
	@$(RUN_PYTHON) -m ruff check --extend-exclude build,.site .
	cd build
	MYPYPATH=lint-site $(RUN_PYTHON) -m mypy --config-file ../pyproject.toml --cache-dir .mypy_cache -p wattline

docs-figures: dev ## draw the pictures of docs/ again (RUN=folder of a run of preset standard; needs chromium)
	@[ -n "$(RUN)" ] || { echo 'name the run: make docs-figures RUN=runs/<id>' >&2; exit 2; }
	$(RUN_PYTHON) tools/docs_figures.py "$(RUN)" --out docs/images

wheel: dev ## build the wheel and the source archive into dist/
	@rm -rf build/lib build/bdist.* dist
	mkdir -p build
	$(RUN_PYTHON) -m build --no-isolation --outdir dist . > build/wheel.log 2>&1 || { tail -n 20 build/wheel.log >&2; exit 1; }
	ls dist/*

clean: ## remove what was built (ALL=1: .venv too); runs/ stays
	@rm -rf build dist .site ./*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks .coverage
	find $(wildcard $(ROOMS) tests tools) -name __pycache__ -type d -prune -exec rm -rf {} +
	$(if $(ALL),rm -rf .venv)

# Always asked, and quick to answer: the recipes look themselves whether anything has changed.
FORCE:
runtime: $(RUNTIME)
dev: $(DEV)

ifeq ($(VENV),1)

$(RUNTIME): FORCE
	$(call once,pyproject.toml $(CONSTRAINTS),$(make_venv); \
	  echo "installing wattline and what it needs into .venv"; $(venv_pip) -e .; rm -f .venv/.runtime@* .venv/.dev@*)

# setuptools: the lint and the tests build the package without fetching anything.
$(DEV): $(RUNTIME) FORCE
	$(call once,$(RUNTIME),echo "installing what tests and lint need into .venv"; \
	  $(venv_pip) "setuptools>=77" -e ".[test$(comma)lint$(comma)triton]")

# A .venv without pip is what an interrupted or refused `python -m venv` leaves behind.
make_venv = .venv/bin/python -m pip --version >/dev/null 2>&1 || { $(CHOSEN) tools/check_dependencies.py --python-only; \
  echo "making .venv with $(PYTHON)"; $(CHOSEN) -m venv --clear .venv; }
venv_pip = $(PIP_ENV) .venv/bin/python -m pip install $(QUIET) $(addprefix -c ,$(CONSTRAINTS))

else

.PHONY: dependencies
dependencies:
	@$(CHOSEN) tools/check_dependencies.py --build $(addprefix --extra ,$(sort $(EXTRAS_OF_GOALS)))

EXTRAS_OF_GOALS = $(if $(filter test wheel,$(MAKECMDGOALS)),test) $(if $(filter lint,$(MAKECMDGOALS)),lint)

$(RUNTIME): FORCE | dependencies
	$(call once,$(PACKAGE),echo "installing wattline into .site"; rm -rf .site; \
	  $(PIP_PACKAGE) $(CHOSEN) $(PIP_PACKAGE_FLAGS) --target .site .)

endif

build/lint-site/.installed: FORCE | dev
	$(call once,$(PACKAGE),rm -rf build/lint-site; \
	  $(PIP_PACKAGE) $(RUN_PYTHON) $(PIP_PACKAGE_FLAGS) --target build/lint-site .)
