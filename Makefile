# The one list of commands. `make run` and `make test` need nothing but Python 3.11+ and make.

# Of the Pythons in PATH one whose compiler was guided by a profile, else the first:
# docs/decisions/0020-interpreter.md.
PYTHON ?= $(eval PYTHON := $(shell IFS=:; for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	for folder in $$PATH; do build=$$("$$folder/$$name" deploy/interpreter.py 2>/dev/null) && \
	echo "$${build%% *}:$$folder/$$name"; done; done | sort -s -t : -k 1,1n | head -n 1 | cut -d : -f 2-))$(PYTHON)
HTTP ?= 8080
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
PIP_INSTALL := -m pip --disable-pip-version-check install --config-settings editable_mode=compat
# The versions that the suite was last run with, build tools among them: see make pin.
PINS := constraints.txt
INSTALL := PIP_CONSTRAINT=$(PINS) PIP_BUILD_CONSTRAINT=$(PINS) $(BIN)/python $(PIP_INSTALL) --editable

.DEFAULT_GOAL := help
.PHONY: help run test test-ahead test-newest test-lowest pin newest chaos long lint format bench failover simulate clean distclean
.DELETE_ON_ERROR:

help:
	@echo 'make run [HTTP=8080]   three nodes, fifteen tasks, one node killed and back; up until Ctrl-C; TLS=1: by HTTPS'
	@echo 'make test              lint, types, import rules, all tests, coverage of the pure cores'
	@echo 'make chaos             forty scenarios of harm to real nodes under load, and a line that sums them up'
	@echo 'make long              the tests that are too long for make test: mutation tables, many seeds, every kill'
	@echo 'make test-ahead        the same with the clock three years ahead: AHEAD=+1095d'
	@echo 'make test-newest       some tests with the newest of everything; TRY=tests for all of them'
	@echo 'make test-lowest       some tests with the lowest versions that setup.cfg allows'
	@echo 'make pin               write the newest of everything down in $(PINS), to be tested with from now on'
	@echo 'make lint              ruff, mypy, import rules'
	@echo 'make format            let ruff format and fix what it can'
	@echo 'make bench             three nodes beside other queues, some 25 minutes; BENCH=--quick for three'
	@echo 'make failover          hurt clusters of three nodes, write docs/reference/failover.md: 25 minutes'
	@echo 'make simulate          SEEDS=10000 seeded worlds of consensus, then of replication; says n of N'
	@echo 'make clean             remove what the others made, but no data of nodes; make distclean: $(VENV) too'

# --- the virtual environment: made again from its parts whenever what it is made from changes ---
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'taskqueue: no Python 3.11 or newer found; say which: make PYTHON=/path/to/python3' >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON), $$($(PYTHON) deploy/interpreter.py | cut -d ' ' -f 2-) …"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.run-stamp: setup.cfg pyproject.toml $(PINS) | $(BIN)/python
	@echo 'Installing taskqueue into $(VENV) …'
	@$(INSTALL) . >$(LOG) 2>&1 || { cat $(LOG) >&2; exit 1; }
	@touch $@

$(VENV)/.dev-stamp: setup.cfg pyproject.toml $(PINS) | $(BIN)/python
	@echo 'Installing taskqueue and its tools into $(VENV) …'
	@$(INSTALL) '.[dev]' >$(LOG) 2>&1 || { cat $(LOG) >&2; exit 1; }
	@touch $@ $(VENV)/.run-stamp

# --- commands ---
run: $(VENV)/.run-stamp
	@exec $(BIN)/python -m tq_node.demo --http $(HTTP) $(if $(TLS),--tls)

# Lint, types and all tests but the long ones, beside one another; ends with a table of what each part took. PARTS='pure lint': only these.
PARTS ?=
test: $(VENV)/.dev-stamp
	@$(BIN)/python -m tests.parts $(PARTS)

# No test depends on the date. With the monotonic clock as it is: only what the calendar says is another.
AHEAD ?= +1095d
LIBFAKETIME := $(firstword $(wildcard /usr/lib/*/faketime/libfaketimeMT.so.1))
test-ahead: $(VENV)/.dev-stamp
	@test -n "$(LIBFAKETIME)" || { echo 'taskqueue: libfaketime is not installed (Debian: apt-get install libfaketime)' >&2; exit 1; }
	@LD_PRELOAD=$(LIBFAKETIME) FAKETIME='$(AHEAD)' FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_FORCE_MONOTONIC_FIX=0 \
		PYTHONPATH=$(CURDIR)/tests/support/ahead \
		$(BIN)/python -m tests.parts $(or $(PARTS),processes clusters pure rest slow console)

# --- other versions than the tested ones: environments of their own, made anew each time ---
TRY ?= tests/unit tests/contract
newest:
	@rm -rf build/newest && $(PYTHON) -m venv build/newest
	@echo 'Installing the newest of everything into build/newest …'
	@build/newest/bin/python $(PIP_INSTALL) --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'

test-newest: newest
	build/newest/bin/python -m pytest $(TRY) -m 'not long'

test-lowest:
	@rm -rf build/lowest && $(PYTHON) -m venv build/lowest
	@$(PYTHON) -m tests.lowest >build/lowest/constraints.txt
	@echo 'Installing the lowest of everything into build/lowest …'
	@build/lowest/bin/python $(PIP_INSTALL) --quiet --constraint build/lowest/constraints.txt --editable '.[dev]'
	build/lowest/bin/python -m pytest $(TRY) -m 'not long'

pin: newest
	@{ sed -n '/^#/p' $(PINS); build/newest/bin/python -m pip freeze --all --exclude-editable --exclude pip; } >build/$(PINS)
	@mv build/$(PINS) $(PINS) && git diff --stat -- $(PINS)

# Every scenario once, under load, with a checker of histories: about half an hour. docs/reference/chaos.md says what happens.
chaos: $(VENV)/.dev-stamp
	@$(BIN)/python -m tests.chaos

# What is too long for make test: every kill twenty times, mutation tables, many seeds, every scenario of harm. About an hour.
long: $(VENV)/.dev-stamp
	@$(BIN)/python -m tests.parts --long $(PARTS)

lint: $(VENV)/.dev-stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev-stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

BENCH ?=
bench: $(VENV)/.dev-stamp
	$(BIN)/python -m bench $(BENCH)

failover: $(VENV)/.dev-stamp
	$(BIN)/python -m bench.failover --write docs/reference/failover.md

SEEDS ?= 10000
SECONDS_MAX ?= 3600
simulate: $(VENV)/.dev-stamp
	$(BIN)/python -m tests.simulation.run raft replication --seeds $(SEEDS) --jobs 2 --seconds-max $(SECONDS_MAX)

clean:
	rm -rf build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache data/demo-*
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

distclean: clean
	rm -rf $(VENV)
