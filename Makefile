PYTHON ?= python3
DEMO_FOLDER ?= demo
BIN := .venv/bin
PACKAGING := setup.cfg pyproject.toml

.PHONY: demo test test-slow lint clean

demo: .venv/installed
	$(BIN)/ldseg_demo -o $(DEMO_FOLDER)

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: .venv/installed-test
	@test -n "$$LDSEG_TEST_DATASET" || { echo "Set LDSEG_TEST_DATASET to a data set in nnU-Net's raw format."; exit 1; }
	$(BIN)/python -m pytest -q -m slow

lint: .venv/installed-test
	$(BIN)/ruff check ldseg_auto planners trainers tests benchmarks
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The stamps make a second run quick. Both installs are editable, so that edits take effect at once.
.venv/installed: $(PACKAGING) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-test: $(PACKAGING) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ .venv/installed
