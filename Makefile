PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Tests of one part each, milliseconds long; those of whole runs are `make test`'s.
QUICK := tests/pipeline/geometry tests/pipeline/job/test_encoding.py tests/pipeline/test_config.py \
	tests/pipeline/test_pipelining.py tests/pipeline/quality/test_metrics.py tests/pipeline/registration/test_decision.py \
	tests/pipeline/registration/test_fit.py tests/pipeline/fusion/test_packing.py \
	tests/pipeline/fusion/test_back_projection.py tests/models/test_losses.py tests/models/test_operators.py \
	tests/models/subspace tests/catalogs/test_bands.py tests/catalogs/test_outline.py tests/catalogs/references

.PHONY: help test quick map docs demo check slow chaos faults fuzz server browser bench bench-scene bench-memory bench-methods bench-quality bench-models bench-catalog archive-test bench-archive bench-register bench-uncertainty bench-realism bench-ablations bench-ceiling bench-adaptation schemas lock audit clean
help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[test,docs]'
	touch $@

demo: $(VENV)/.installed  ## install, fuse a synthetic pair with known truth, print product and scores
	rm -rf demo
	$(BIN)/hyperfuse demo --output demo

check: $(VENV)/.installed-test  ## lint, format, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

map: $(VENV)/.installed-test  ## the import graph of the pipeline's rooms as map.svg; fails if an arrow runs up
	$(BIN)/python -m docs.draw_map map.svg

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

docs: $(VENV)/.installed-docs  ## the site of docs/ as build/docs/index.html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/docs

quick: $(VENV)/.installed-test  ## the inner loop: lint, and the laws of the parts that take milliseconds; under a minute
	$(BIN)/ruff check .
	$(BIN)/pytest -q $(QUICK)

test: check      ## everything CI runs: check, then the tests, a file to a core
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile

slow: $(VENV)/.installed-test  ## the tests that take minutes (kill and resume, real worker processes)
	$(BIN)/pytest -m slow --timeout 1200

chaos: $(VENV)/.installed-test  ## 50 runs and 50 workers killed at random moments; no part of a product ever shows
	$(BIN)/python -m tests.benchmarks.chaos

fuzz: $(VENV)/.installed-test  ## harmed products of every reader, 300 each: opened or refused, never a traceback, a crash or a hang
	$(BIN)/python -m tests.benchmarks.fuzz

faults: $(VENV)/.installed-test  ## every fault of docs/reliability.md made for real, and the table of what came of it; needs a C compiler
	$(BIN)/python -m tests.benchmarks.faults --docs

server: $(VENV)/.installed-test  ## a real Prefect server, work pool, worker and deployment
	$(BIN)/pytest -m server --timeout 900

browser: $(VENV)/.installed-test  ## reports, comparisons and indices in a headless Chromium; needs `pip install playwright && playwright install chromium`
	$(BIN)/pytest -m browser

bench: $(VENV)/.installed-test  ## the engine over the network's forward, over the raw write, and beside its peers; memory; Dask workers
	$(BIN)/pip install --quiet monai
	$(BIN)/python -m tests.benchmarks.engine

bench-scene: $(VENV)/.installed-test  ## a whole run of one pair, stage by stage, beside what its bytes cost alone; SIZE=3600 BANDS=200 for one as large as EnMAP's
	$(BIN)/python -m tests.benchmarks.scene --size $(or $(SIZE),1200) --bands $(or $(BANDS),100)

bench-memory: $(VENV)/.installed-test  ## peak memory of a 1,000 x 1,000 and a 4,000 x 4,000 px fusion, 60 bands
	$(BIN)/python -m tests.benchmarks.memory

bench-methods: $(VENV)/.installed-test  ## seconds and memory of the training-free methods, 100 to 400 px, 200 bands
	$(BIN)/python -m tests.benchmarks.methods map_subspace cnmf mtf_glp gsa-regressed gsa bicubic

bench-quality: $(VENV)/.installed-test  ## what judging costs beside a fusion by csakd-student, 1,024 x 1,024 px, 172 bands, CPU
	$(BIN)/python -m tests.benchmarks.quality --bands 172

bench-models: $(VENV)/.installed-test  ## each network's fast forward against its plain one, 256 x 256 px, CPU
	$(BIN)/python -m tests.benchmarks.models csakd-student csakd-teacher hyfusion-s

bench-catalog: $(VENV)/.installed-test  ## listing and pairing of a catalogue of 10,000 scenes
	$(BIN)/python -m tests.benchmarks.catalog

archive-test: $(VENV)/.installed-test  ## 30 pairs through a real server, worker and deployment, killed three times; about ten minutes
	$(BIN)/pytest -m archive --timeout 3600

bench-archive: $(VENV)/.installed-test  ## backlog of 10,000 scenes: seconds and memory
	$(BIN)/python -m tests.benchmarks.archive

bench-register: $(VENV)/.installed-test  ## known displacements, beside phase correlation and (install_arosics.sh) AROSICS
	$(BIN)/python -m tests.benchmarks.register

bench-uncertainty: $(VENV)/.installed-test  ## how often the truth lies within 90 % intervals, on synthetic land and real cubes
	$(BIN)/python -m tests.benchmarks.uncertainty

bench-realism: $(VENV)/.installed-test  ## generated scenes beside real cubes: components, neighbors, what methods reach; DATA=DIR
	$(BIN)/python -m tests.benchmarks.realism --data $(DATA)

bench-ablations: $(VENV)/.installed-test  ## what each part of a training brings, resumable; DATA=DIR OUTPUT=DIR STEPS=N
	$(BIN)/python -m tests.benchmarks.ablations --data $(DATA) --output $(OUTPUT) --steps $(or $(STEPS),2000)

bench-ceiling: $(VENV)/.installed-test  ## how much of what the default leaves can be learnt at all, on real cubes; DATA=DIR
	$(BIN)/python -m tests.benchmarks.ceiling --data $(DATA)

bench-adaptation: $(VENV)/.installed-test  ## what fitting a network to its scene brings at full resolution; DATA=DIR
	$(BIN)/python -m tests.benchmarks.adaptation --data $(DATA)

schemas: $(VENV)/.installed-test  ## the JSON schemas of the records that products hold, to docs/schemas
	$(BIN)/python -m tests.schemas

lock:            ## requirements/*.txt from pyproject.toml, each version with its digests; needs uv
	for set in "image --extra train" "test --extra train --extra test --extra docs --extra api --extra s3 --extra tensorboard"; do \
		uv pip compile pyproject.toml $${set#* } --generate-hashes --python-version 3.11 \
			--python-platform x86_64-manylinux_2_28 --torch-backend cpu --no-emit-package torch --no-emit-index-url \
			--no-annotate --no-header --quiet --upgrade --output-file requirements/$${set%% *}.txt || exit 1; \
	done

audit: $(VENV)/.installed  ## installed packages against the published advisories; asks the package index
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable

clean:           ## remove the virtual environment and what the demo made
	rm -rf $(VENV) demo
