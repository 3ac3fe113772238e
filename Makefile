# Levada: `make help` lists what can be done.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTEST_ARGS ?=
LEVADA := .venv/bin/levada
PYTEST = .venv/bin/python -m pytest $(PYTEST_ARGS) --junit-xml=build/reports/$@.xml

##@ The line
up: .venv ## Build what is missing, start a cluster, install the line, run the demo (CONTEXT=… REGISTRY=… use yours)
	@$(LEVADA) up
down: .venv ## Stop the cluster and remove all of it but the cache (with CONTEXT=…: uninstall the release)
	@$(LEVADA) down

##@ Proof
test: lint unit chart cluster ## All layers, in the order of their speed; stops at the first red one
lint: .venv ## Style, types, shell, YAML, imports between rooms
	@ci/lint
unit: .venv ## No network, minutes
	$(PYTEST) --timeout 120 tests/unit
chart: .venv ## Every values combination rendered and checked
	$(PYTEST) tests/chart
cluster: .venv ## The line on a real cluster of its own name, driven from outside (KEEP=1 keeps it)
	$(PYTEST) --timeout 2400 -o faulthandler_timeout=900 tests/cluster
bench: .venv ## Figures as ratios against peers and floors in the same run; never part of the tests
	$(PYTEST) -s tests/bench

##@ Upkeep
generate: .venv ## Write again what is generated: values schema, reference pages, claims
	@.venv/bin/python -m levada.values write
	@ci/claims
lock: .venv ## Make all requirements locks anew
	@ci/lock
hooks: .venv ## Run the static checks before every commit
	@.venv/bin/pre-commit install

.venv: requirements/dev.txt pyproject.toml
	@ci/venv && touch .venv

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up down test lint unit chart cluster bench generate lock hooks help
