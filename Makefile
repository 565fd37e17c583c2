# Two commands do everything on a fresh machine with Python 3.11 to 3.13: `make demo` and `make test`.
# The virtual environment .venv is made from requirements.lock, and again only when the lock changes.

PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
PIP_AUDIT_VERSION := 2.10.1
STAMP := $(VENV)/.lock-installed
CAMPAIGNS := mutations damage training_faults object_store durability

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check docs lock audit clean

help:
	@echo "make demo    train on a small synthetic cohort and draw its maps (a few minutes)"
	@echo "make test    run the tests: each property at least once (minutes on two cores)"
	@echo "make test-all  the same with thousands of random cases, every job on S3 and under every signal, and then the"
	@echo "             campaigns: mutated code, flipped bits, kills, full disks (hours; before a release)"
	@echo "make check   ruff and mypy"
	@echo "make docs    the site, into site/"
	@echo "make setup   make .venv from requirements.lock (demo, test and check do this themselves)"
	@echo "make lock    resolve both locks again from pyproject.toml: requirements.lock, and that of the image without dev"
	@echo "make audit   look the image's packages up in the OSV database of vulnerabilities"
	@echo "make clean   remove .venv and caches"

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "distmil needs Python 3.11, 3.12 or 3.13 on the PATH (or: make PYTHON=/path/to/python3.11)" >&2; exit 1; fi
	@echo "Setting up $(VENV) with $$($(PYTHON) --version); the packages are several GB (torch's ordinary build)." >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python jobs/train.py --config jobs/configs/demo.yaml

test: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # tests/conftest.py puts dear files first

test-all: export DISTMIL_TEST_ALL = 1
test-all: test
	@set -e; for name in $(CAMPAIGNS); do $(BIN)/python -m tests.campaigns.$$name; done

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(STAMP)
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lock: $(STAMP)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--extra dev pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--extra aws --extra optuna --constraint requirements.lock pyproject.toml -o requirements-image.lock

# Its exit code is 1 where a locked package has a known vulnerability, and 0, with a word, where the database is silent.
audit: $(STAMP)
	@found=$$($(BIN)/uvx --quiet "pip-audit==$(PIP_AUDIT_VERSION)" --disable-pip --progress-spinner off \
		--vulnerability-service osv --requirement requirements-image.lock 2>&1) && echo "$$found" || { code=$$?; \
		case "$$found" in \
			*requests.exceptions.ConnectionError*) echo "the database of vulnerabilities does not answer; nothing was looked up" ;; \
			*) echo "$$found"; exit $$code ;; \
		esac; }

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
