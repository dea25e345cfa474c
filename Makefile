# make demo   the main job, in one command      make test    everything the tests need, and the tests
# make check  ruff, mypy, layers, docs          make bench   ratios to real peers
PYTHON ?= $(shell tools/python)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Packages that do no I/O: every branch is tested, but for the readings of broken mail, where nearly every one is.
PURE := --cov=sendswitch.smtp.protocol --cov=sendswitch.mail --cov=sendswitch.reply --cov=sendswitch.routing \
  --cov=sendswitch.queue.policy --cov=sendswitch.journal --cov=sendswitch.sieve
WORKERS ?= 2
# The programs that `make differential` asks, and the messages of Python's own tests.
READERS := node:nodejs npm:npm cargo:cargo unzip:unzip 7z:p7zip-full bsdtar:libarchive-tools libpython3.11-testsuite

# What compiles, and Python's headers.
COMPILER := gcc libc6-dev python3-dev

.PHONY: demo test unit check bench soak fuzz differential fresh install wheel deb packages-build lock format reference clean packages

demo: $(VENV)/.run
	$(BIN)/sendswitch demo $(ARGS)

# Compiling takes minutes and needs one core only; it begins now, so that the tests of compiled code, which come last,
# find it done.
test: $(VENV)/.dev packages
	nice -n 19 $(BIN)/python tools/compile.py >/dev/null 2>&1 & $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

unit: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests tools
	$(BIN)/ruff check src tests tools
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/house
	SENDSWITCH_EXAMPLES=1 $(BIN)/python -m pytest -q tests/unit --ignore=tests/unit/test_fuzz.py $(PURE) --cov-branch --cov-report=
	$(BIN)/coverage report --show-missing --skip-covered --fail-under=100 --omit='*/mail/mime/*'
	$(BIN)/coverage report --show-missing --skip-covered --fail-under=95 --include='*/mail/mime/*'

# The ratios, against real peers in one run, compiled as an installed program is.
bench: $(VENV)/.dev packages
	compiled=$$($(BIN)/python tools/compile.py) && PYTHONPATH=$$compiled $(BIN)/sendswitch bench $(ARGS)

# A hundred kills under load, and 20,000 examples for each property of the protocol.
soak: $(VENV)/.dev packages
	compiled=$$($(BIN)/python tools/compile.py) && \
	  PYTHONPATH=$$compiled SENDSWITCH_SOAK=1 $(BIN)/python -m pytest -m soak tests $(ARGS)
	SENDSWITCH_EXAMPLES=20000 $(BIN)/python -m pytest -n $(WORKERS) tests/unit/smtp/protocol/test_server.py \
	  tests/unit/smtp/protocol/test_client.py tests/unit/smtp/protocol/test_content.py

# What strangers may send: refused or read, never raised, and cheap (ARGS="--seconds 600 step_cost").
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz $(ARGS)

# What other programs see in malformed messages and archives, compared with what we see; recorded for `make test`.
differential: $(VENV)/.dev
	tools/packages $(READERS)
	$(BIN)/python -m tests.differential $(ARGS)

# Both commands of the README on a bare Debian, in a chroot; needs root. ARGS: other commands; DEBIAN: its code name.
fresh:
	DEBIAN=$(DEBIAN) tools/fresh $(ARGS)
DEBIAN ?= bookworm

# The program, its hot modules compiled, in PREFIX/lib/sendswitch, and its command in PREFIX/bin.
PREFIX ?= /usr/local
install: packages-build
	tools/environment $(PYTHON) $(PREFIX)/lib/sendswitch
	mkdir -p $(PREFIX)/bin
	ln -sf ../lib/sendswitch/bin/sendswitch $(PREFIX)/bin/sendswitch

# A wheel in dist/, and the versions to install with it.
wheel: $(VENV)/.run packages-build
	tools/wheel $(BIN)/python dist

# A Debian package in dist/ (needs Debian's Python).
deb: packages-build
	tools/deb $(PYTHON) dist

packages-build:
	tools/packages python3-venv $(COMPILER)

format: $(VENV)/.dev
	$(BIN)/ruff format src tests tools
	$(BIN)/ruff check --fix src tests tools

$(VENV)/.run: requirements/build.lock requirements/run.lock pyproject.toml
	tools/setup $(PYTHON) $(VENV) requirements/run.lock
	touch $@

$(VENV)/.dev: requirements/build.lock requirements/dev.lock pyproject.toml
	tools/setup $(PYTHON) $(VENV) requirements/dev.lock
	touch $@ $(VENV)/.run

packages: packages-build
	tools/packages
	tools/exim .exim

# docs/reference, docs/man and deploy/grafana.json, made from the code.
reference: $(VENV)/.dev
	$(BIN)/python tools/reference.py
	$(BIN)/python tools/manual.py
	$(BIN)/python tools/kit.py
	$(BIN)/python tools/board.py

LOCKED := uv pip compile -q --generate-hashes --no-header --no-emit-index-url --no-annotate --python-version 3.11
lock:
	$(LOCKED) --group build -o requirements/build.lock
	$(LOCKED) --extra auth pyproject.toml -o requirements/run.lock
	$(LOCKED) --extra dev pyproject.toml -o requirements/dev.lock

clean:
	rm -rf $(VENV) .compiled .exim .differential .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
