# The same commands for everyone. VENV, PYTHON and DATA can be set from outside.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-fast test-slow test-faults images test-containers docs lint format clean

# Installed anew when the lock or the package's own metadata changes.
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint requirements.lock
	touch $@

demo: install
	$(BIN)/expunge demo

# All that is quick enough for every change; `make test T=tests/core` is a part of it. A worker has
# one thread: more of them only wait for each other where two workers share two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
QUICK := -m "not slow and not faults and not containers" --numprocesses 2 \
	--dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST) $(QUICK) $(T)

# What needs neither MLflow nor kfp.
test-fast: install
	$(PYTEST) $(QUICK) tests/core tests/data tests/formats tests/report \
		$(filter-out tests/test_extending.py,$(wildcard tests/test_*.py))

test-slow: install
	$(BIN)/pytest -m slow $(T)

# A run is killed at each of some 60 places and started again.
test-faults: install
	$(PYTEST) -m faults --numprocesses 2 $(T)

images:
	docker/images.sh

# Every step in a container, on Docker or Podman; docs/guides/containers.md has what it takes.
test-containers: install images
	VENV=$(VENV) docker/test.sh

# The reference from the code, then the site in build/docs. A warning, such as a broken link, fails.
docs: install
	$(BIN)/python docs/write_reference.py
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=components:pipelines $(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .expunge build/docs .mypy_cache .pytest_cache .ruff_cache
