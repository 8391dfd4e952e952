PYTHON ?= python3
DEMO_FOLDER ?= demo
BIN := .venv/bin
PACKAGING := setup.cfg pyproject.toml

.PHONY: demo test test-slow benchmark-quick benchmark-full lint clean

demo: .venv/installed
	$(BIN)/ldseg_demo -o $(DEMO_FOLDER)

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: .venv/installed-test
	@test -n "$$LDSEG_TEST_DATASET" || { echo "Set LDSEG_TEST_DATASET to a data set in nnU-Net's raw format."; exit 1; }
	$(BIN)/python -m pytest -q -m slow

# Both need nnU-Net's three environment variables and both plans of the data set; see benchmarks/RESULTS.md.
BENCHMARK_DATASET ?= Dataset004_Hippocampus

# Under 20 minutes on two cores: one short training a side.
benchmark-quick: .venv/installed-benchmark
	$(BIN)/python benchmarks/cost.py $(BENCHMARK_DATASET) --image_steps 10
	$(BIN)/python benchmarks/shares.py $(BENCHMARK_DATASET) --samples 5
	$(BIN)/python benchmarks/training_cost.py $(BENCHMARK_DATASET) --iterations 5 --workers 0
	$(BIN)/python benchmarks/accuracy.py $(BENCHMARK_DATASET) --minutes 2 --sides ldseg nnunet-adamw-16
	$(BIN)/python benchmarks/robustness.py $(BENCHMARK_DATASET) --minutes 2 --sides ldseg nnunet-adamw-16 --cases 2
	$(BIN)/python benchmarks/figures.py

benchmark-full: .venv/installed-benchmark
	$(BIN)/python benchmarks/cost.py $(BENCHMARK_DATASET) --image_steps 50 1000 --sizes 32 64 128 256 --patches 128
	$(BIN)/python benchmarks/shares.py $(BENCHMARK_DATASET)
	$(BIN)/python benchmarks/training_cost.py $(BENCHMARK_DATASET)
	$(BIN)/python benchmarks/accuracy.py $(BENCHMARK_DATASET) --minutes 5 10 20 \
		--sides ldseg ldseg-unsmoothed ldseg-at-T ldseg-paper nnunet nnunet-adamw \
		nnunet-adamw-16 nnunet-smoothed-16 nnunet-no-skips-16 resenc-m resenc-m-adamw-16 ldseg-strong-noise \
		nnunet-strong-noise-16
	$(BIN)/python benchmarks/robustness.py $(BENCHMARK_DATASET) \
		--sides ldseg ldseg-unsmoothed ldseg-at-T nnunet nnunet-adamw-16 nnunet-smoothed-16 nnunet-no-skips-16 \
		ldseg-strong-noise nnunet-strong-noise-16
	$(BIN)/python benchmarks/accuracy.py $(BENCHMARK_DATASET) \
		--sides ldseg-no-noise nnunet-no-noise-16 nnunet-no-skips-no-noise-16
	$(BIN)/python benchmarks/robustness.py $(BENCHMARK_DATASET) \
		--sides ldseg-no-noise nnunet-no-noise-16 nnunet-no-skips-no-noise-16
	$(BIN)/python benchmarks/ablations.py $(BENCHMARK_DATASET) --iterations 300
	$(BIN)/python benchmarks/figures.py

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

.venv/installed-benchmark: $(PACKAGING) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[benchmark]'
	touch $@ .venv/installed
