# SPDX-License-Identifier: GPL-3.0-or-later
# The one entry for people and CI: make help.

VENV := .venv
BIN := $(VENV)/bin
# What a type checker does not find by the name of a package: scripts, and the programs of a VPS, which
# have no .py. tests/unit/test_tools.py finds what is missing here.
SCRIPTS := cloud_init.py config.py deploy.py undeploy.py
PROGRAMS := $(wildcard vps/usr/local/bin/* vps/usr/local/lib/home-forwarder/*)
PIP_INSTALL := pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all:
LAB_COMMANDS := mmdebstrap:mmdebstrap systemd-nspawn:systemd-container ip:iproute2 nft:nftables ssh:openssh-client
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header
WORKERS ?= 3

.DEFAULT_GOAL := help

.PHONY: help setup demo test unit fuzz lab-test soak bench lint format lock image clean needs-lab

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(VENV)/operator ## install what an operator needs, into .venv

demo: needs-lab $(VENV)/operator ## the whole thing on this machine: a VPS, a home, a client, a deploy
	@$(BIN)/python -m lab.demo

# Two runs: pyinfra patches what pytest's workers are made of, so the unit tests do without workers.
test: needs-lab $(VENV)/developer ## every check and every test (root, Linux)
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint unit
	@$(MAKE) --no-print-directory lab-test

unit: $(VENV)/developer ## the tests that need neither root nor a lab
	$(BIN)/pytest tests/unit

fuzz: $(VENV)/developer ## look for bad input that no test knows yet, with new random examples
	$(BIN)/pytest --hypothesis-profile fuzz -m hypothesis tests/unit

lab-test: needs-lab $(VENV)/developer ## the tests on real VPSes
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --durations 15 tests/lab

soak: needs-lab $(VENV)/operator ## three minutes of traffic while everything goes wrong; SECONDS=600 for more
	@$(BIN)/python -m lab.soak --seconds $(or $(SECONDS),180)

bench: needs-lab $(VENV)/operator ## measure relays, resolver and deploys beside others; ARGS="--only udp" for a part
	@$(BIN)/python -m bench $(ARGS)

lint: $(VENV)/developer ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p home_forwarder -p operations -p lab -p bench
	$(BIN)/mypy --scripts-are-modules $(SCRIPTS) $(PROGRAMS)
	$(BIN)/mypy tests/unit
	$(BIN)/mypy tests/lab
	$(BIN)/mypy tests/verify

format: $(VENV)/developer ## put every file into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/developer ## pin what requirements*.in ask for, with hashes
	$(LOCK) --upgrade requirements.in -o requirements.txt
	$(LOCK) --upgrade -c requirements.txt requirements-verify.in -o requirements-verify.txt
	$(LOCK) -c requirements-verify.txt requirements-dev.in -o requirements-dev.txt

image: needs-lab $(VENV)/operator ## build the images that the lab's VPSes are cloned from
	@$(BIN)/python -m lab image

clean: ## remove .venv and caches; the lab's images stay in their own cache
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build

# ---- What the above need ---------------------------------------------------------------------

$(VENV)/python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; Debian 12 and later have it."; exit 1; }
	@python3 -c 'import ensurepip' 2>/dev/null || { \
		[ "$$(id -u)" = 0 ] || { echo "Needed first, as root: apt-get install python3-venv"; exit 1; }; \
		echo "Installing python3-venv ..."; \
		apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; }
	@python3 -m venv $(VENV)
	@touch $@

$(VENV)/operator: $(VENV)/python requirements-verify.txt
	@echo "Installing the Python packages of requirements-verify.txt into $(VENV) ..."
	@$(BIN)/$(PIP_INSTALL) -r requirements-verify.txt
	@touch $@

$(VENV)/developer: $(VENV)/python requirements-dev.txt
	@echo "Installing the Python packages of requirements-dev.txt into $(VENV) ..."
	@$(BIN)/$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@ $(VENV)/operator

needs-lab:
	@[ "$$(uname -s)" = Linux ] && [ "$$(id -u)" = 0 ] || { \
		echo "This needs Linux and root, since the lab is made of containers and network namespaces: sudo make $(MAKECMDGOALS)"; \
		exit 1; }
	@missing=; for each in $(LAB_COMMANDS); do \
		command -v $${each%%:*} >/dev/null || missing="$$missing $${each#*:}"; done; \
	[ -z "$$missing" ] || { \
		command -v apt-get >/dev/null || { echo "The lab needs these Debian packages:$$missing"; exit 1; }; \
		echo "Installing$$missing ..."; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }
