# Every target sets up what it needs: Python 3.11 or newer, pip and make are enough; for root on Debian without pip, too.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3.15 python3,$(shell command -v $(p) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
TESTS := $(VENV)/.tests
SEED ?= 1
RUNS_MAX ?= 2000
COHERENCE_RUNS_MAX ?= 5000
OST_RUNS_MAX ?= 5000
ATTRIBUTE_RUNS_MAX ?= 5000
WORKERS ?= auto

# Install a package of Debian, if we may; a fresh machine has no lists of them.
apt = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "apt-get install $(1)" && \
	{ $(call apt-get,$(1)) || { apt-get update -q && $(call apt-get,$(1)); }; } >/dev/null 2>&1; }
apt-get = DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(1)

.PHONY: tools install-mount help venv demo test check lint types quick scenarios sim coherence swarm-ost swarm-attributes torture bench up down status clean

help:
	@echo "make demo       the main job: a real directory tree through kill -9 of MDS, OSS and a client"
	@echo "make test       all tests"
	@echo "make check      lint, types and the quick tests (before every commit)"
	@echo "make scenarios  Lustre's recovery scenarios, on the simulator and on processes: one JSON line"
	@echo "make sim        $(RUNS_MAX) random runs of the simulator (SEED=1 RUNS_MAX=2000)"
	@echo "make coherence  $(COHERENCE_RUNS_MAX) random runs with clients that cache (SEED=1 COHERENCE_RUNS_MAX=5000)"
	@echo "make swarm-ost  $(OST_RUNS_MAX) random runs with OST kills, power cuts, MDT-OST partitions (SEED=1 OST_RUNS_MAX=5000)"
	@echo "make swarm-attributes  $(ATTRIBUTE_RUNS_MAX) random runs on extended attributes, access lists and times (SEED=1 ATTRIBUTE_RUNS_MAX=5000)"
	@echo "make torture    programs on mounts for hours, also while servers are killed (FSX= FSSTRESS= DBENCH= PGBIN= PJDFSTEST=)"
	@echo "make bench      the benchmarks, one JSON line each"
	@echo "make install-mount   links for mount(8) and umount(8) in /sbin"
	@echo "make up, status, down   a cluster in .lustrelite/"
	@echo "make clean      stop that cluster, remove it, the virtual environment and all caches"

# A virtual environment without pip of its own: Debian's Python has no ensurepip, and pip can work on another one.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or newer, or say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: install Python 3.11 or newer, or say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(call apt,python3-pip) || \
		{ echo "$(PYTHON) has no pip: install it (package python3-pip), or say make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv --without-pip $(VENV)

# Installed again when pyproject.toml changes; the sources are used in place.
$(RUNS): $(BIN)/python pyproject.toml
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check -e .
	@touch $@

$(TESTS): $(BIN)/python pyproject.toml
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(RUNS) $@

venv: $(TESTS)

demo: $(RUNS)
	$(BIN)/lustrelite demo

test: $(TESTS) tools
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: lint types quick

lint: $(TESTS)
	$(BIN)/ruff check .

types: $(TESTS)
	$(BIN)/mypy

quick: $(TESTS)
	$(BIN)/python -m pytest -n $(WORKERS) -q -m "not processes and not slow"

scenarios: $(TESTS)
	@$(BIN)/python -m tests.scenarios_report

sim: $(RUNS)
	$(BIN)/lustrelite sim --seed $(SEED) --runs $(RUNS_MAX) --processes $(shell nproc)

coherence: $(RUNS)
	$(BIN)/lustrelite sim --coherence --seed $(SEED) --runs $(COHERENCE_RUNS_MAX) --processes $(shell nproc)

swarm-ost: $(RUNS)
	$(BIN)/lustrelite sim --ost --seed $(SEED) --runs $(OST_RUNS_MAX) --processes $(shell nproc)

swarm-attributes: $(RUNS)
	$(BIN)/lustrelite sim --attributes --seed $(SEED) --runs $(ATTRIBUTE_RUNS_MAX) --processes $(shell nproc)

torture: $(TESTS) tools
	TORTURE=1 $(BIN)/python -m pytest -v tests/torture tests/posix

bench: $(RUNS)
	$(BIN)/python -m bench all

up status down: $(RUNS)
	$(BIN)/lustrelite $@

# What tests use besides; those that miss one are skipped.
tools:
	@command -v fusermount3 >/dev/null || $(call apt,fuse3) || echo "fusermount3 is missing (package fuse3): only root can mount"
	@PATH="$$PATH:/usr/sbin:/sbin"; command -v mkfs.ext4 >/dev/null || $(call apt,e2fsprogs) || \
		echo "mkfs.ext4 is missing (package e2fsprogs): no tests on disks of their own"

install-mount: $(RUNS)
	@for name in mount.lustrelite mount.fuse.lustrelite; do ln -sfv $(abspath $(BIN))/mount.lustrelite /sbin/$$name; done
	@for name in umount.lustrelite umount.fuse.lustrelite; do ln -sfv $(abspath $(BIN))/umount.lustrelite /sbin/$$name; done

clean:
	@if [ -x $(BIN)/lustrelite ] && [ -d .lustrelite ]; then $(BIN)/lustrelite down || true; fi
	rm -rf .lustrelite $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
