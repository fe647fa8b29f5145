# Two commands: `make demo` and `make test`; both make `.venv` and install what they need.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# One thread per test process: the processes share the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup

.PHONY: demo test lint format fuzz zoo matrix papers bench clean

demo: $(STAMP)
	$(BIN)/vitrewrite apply fpet_lora model=vit_base --out build/demo
	$(BIN)/python examples/run_on_image.py build/demo

test: $(STAMP) lint
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Hours of hypothesis, 20,000 malformed specs and command lines, 200 of them as processes of their own.
fuzz: export HYPOTHESIS_PROFILE = fuzz
fuzz: export VITREWRITE_FUZZ = 20000
fuzz: export VITREWRITE_FUZZ_PROCESSES = 200
fuzz: $(STAMP)
	$(PYTEST) tests/properties tests/passes tests/language/test_properties.py tests/cli/test_fuzz.py

# Every vision transformer of timm, transformers and others; writes docs/coverage.md. Half an hour.
zoo: $(STAMP)
	$(BIN)/python -m pip install --quiet --group zoo
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo
	$(PYTEST) -m slow

# Every method on every architecture; writes the table in docs/coverage.md. A quarter of an hour.
matrix: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.matrix

papers: $(STAMP)
	$(BIN)/vitrewrite check --all --papers docs/papers.md

bench: $(STAMP)
	$(BIN)/vitrewrite bench fpet_lora model=vit_base

clean:
	rm -rf build .venv

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --no-compile --editable . --group dev
	-$(BIN)/python -m compileall -qq -j 0 .venv/lib # as pip would, on all cores; some files never compile
	touch $@
