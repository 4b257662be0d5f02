# Needs make and Python 3.11 or newer. Everything else goes into virtual environments below this directory.

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
VENV20 := .venv-sqlalchemy20
COMPAT := .venv-compat
COMPAT20 := .venv-compat20
PIP := -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.PHONY: help demo example example-load browser mariadb test test20 soak bench compat compat20 check format lint types fix coverage docs build clean

help:
	@echo 'make demo     watch cached reads and invalidations happen (REDIS_URL=... to see them over Redis, too)'
	@echo 'make example  a FastAPI application with its dashboard, on a Redis of its own; make example-load sends it requests'
	@echo 'make test     run all tests, on real servers; PYTEST_ARGS="-k get" for some of them; needs MariaDB (mariadb-server)'
	@echo 'make test20   the same on SQLAlchemy 2.0'
	@echo 'make browser  look at the dashboard in a real browser: needs Chromium (apt-get install chromium)'
	@echo 'make soak     ten minutes of readers, writers, others and faults, then followers killed; SOAK_SECONDS=60 for one'
	@echo '              SOAK_TOPOLOGY=cluster or sentinel for all but the last on one of these'
	@echo 'make bench    race every path against its floor, into docs/performance.md; BENCH_ARGS="in_process" for one'
	@echo 'make compat   the test suites of SQLModel and SQLAlchemy themselves, with every class cached; COMPAT_ARGS="--suite sqlmodel"'
	@echo 'make compat20 the same on SQLAlchemy 2.0'
	@echo 'make check    format, lint, types, and all tests, those of the documents included: before every commit'
	@echo 'make fix      let ruff mend format and lint'
	@echo 'make coverage run all tests and print what they did not reach'
	@echo 'make docs     the site into site/, with every warning an error'
	@echo 'make build    sdist and wheel into dist/, checked as a package index would'
	@echo 'make clean    remove the environments and everything that was built'

demo: $(VENV)/library.stamp
	@$(VENV)/bin/python examples/demo.py

EXAMPLE_ARGS ?=
LOAD_ARGS ?=

example: $(VENV)/example.stamp
	@$(VENV)/bin/python -m examples.fastapi_app $(EXAMPLE_ARGS)

example-load: $(VENV)/example.stamp
	@$(VENV)/bin/python -m examples.fastapi_app.load $(LOAD_ARGS)

browser: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest browser

test: $(VENV)/dev.stamp mariadb
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

# The one server of the tests that no wheel brings.
mariadb:
	@if ! PATH="$$PATH:/usr/sbin" command -v mariadbd > /dev/null; then \
	  test "$$(id -u)" = 0 || { echo 'the tests need MariaDB: sudo apt-get install mariadb-server'; exit 1; }; \
	  apt-get update && apt-get install --yes --no-install-recommends mariadb-server; \
	fi

test20: $(VENV20)/dev.stamp mariadb
	$(VENV20)/bin/python -m pytest $(PYTEST_ARGS)

SOAK_SECONDS ?= 600
SOAK_TOPOLOGY ?= single
SOAK_CHANGES ?= 1000000

soak: $(VENV)/dev.stamp
	$(VENV)/bin/python -m soak --seconds $(SOAK_SECONDS) --mode strong --others followed --topology $(SOAK_TOPOLOGY)
	$(VENV)/bin/python -m soak.following --changes $(SOAK_CHANGES) --kills 20

COMPAT_ARGS ?=

bench: $(VENV)/bench.stamp
	$(VENV)/bin/python -m benchmarks $(BENCH_ARGS)

compat: $(COMPAT)/compat.stamp
	$(COMPAT)/bin/python -m compat $(COMPAT_ARGS)

compat20: $(COMPAT20)/compat.stamp
	$(COMPAT20)/bin/python -m compat $(COMPAT_ARGS)

# `make check test` runs the tests once: they are one target.
check: format lint types test

format: $(VENV)/dev.stamp
	$(VENV)/bin/ruff format --check

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check

types: $(VENV)/dev.stamp
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

fix: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

coverage: $(VENV)/dev.stamp mariadb
	$(VENV)/bin/coverage run --branch --source=sqlmodel_cache -m pytest $(PYTEST_ARGS)
	$(VENV)/bin/coverage report --show-missing

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict
	@echo 'open site/index.html'

build: $(VENV)/dev.stamp
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) $(VENV20) $(COMPAT) $(COMPAT20) build dist site .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A stamp is newer than pyproject.toml when its environment has what pyproject.toml asks for.

$(VENV)/bin/python $(VENV20)/bin/python $(COMPAT)/bin/python $(COMPAT20)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)

$(VENV)/library.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) --editable .
	@touch $@

$(VENV)/example.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) --editable '.[example]'
	@touch $@

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) --editable '.[dev]' 'sqlalchemy>=2.1'
	@touch $@ $(VENV)/library.stamp $(VENV)/docs.stamp $(VENV)/example.stamp

$(VENV)/bench.stamp: $(VENV)/dev.stamp
	$(VENV)/bin/python $(PIP) --editable '.[bench]' 'sqlalchemy>=2.1'
	@touch $@

$(VENV20)/dev.stamp: pyproject.toml | $(VENV20)/bin/python
	$(VENV20)/bin/python $(PIP) --editable '.[dev]' 'sqlalchemy<2.1'
	@touch $@

$(COMPAT)/compat.stamp: pyproject.toml compat/requirements.txt | $(COMPAT)/bin/python
	$(COMPAT)/bin/python $(PIP) --editable '.[dev]' -r compat/requirements.txt 'sqlalchemy>=2.1'
	@touch $@

$(COMPAT20)/compat.stamp: pyproject.toml compat/requirements.txt | $(COMPAT20)/bin/python
	$(COMPAT20)/bin/python $(PIP) --editable '.[dev]' -r compat/requirements.txt 'sqlalchemy<2.1'
	@touch $@
