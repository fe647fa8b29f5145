# Two commands: `make demo` and `make test`; both make `.venv` and install what they need.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# One thread per test process: the processes share the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup

.PHONY: demo test lint format fuzz zoo matrix papers bench clean release package fresh notebooks docs

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

# Before a release: hours. Each part is a target of its own.
release: test zoo matrix notebooks docs package fresh

# What is uploaded: the wheel is built out of the sdist, so that the sdist is all that it takes.
package: $(STAMP)
	$(BIN)/python -m pip install --quiet --group release
	rm -rf dist
	$(BIN)/python -m hatchling build -t sdist -d dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m tests.packages dist

# As somebody else gets it: README's first hour with the wheel, in an empty environment, and its types there.
fresh: package
	rm -rf build/fresh
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.documentation.first_hour dist/*.whl build/fresh
	build/fresh/env/bin/python -m pip install --quiet "mypy>=1.15"
	cd build/fresh && env/bin/mypy --config-file ../../pyproject.toml -p vitrewrite
	cd build/fresh && env/bin/vitrewrite check fpet_lora

# The notebooks of `examples`, on tiny models.
notebooks: $(STAMP)
	$(BIN)/python -m pip install --quiet --group release
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.notebooks

# Every command and snippet of the README and of `docs`; what is printed there has to be what comes.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --group release
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.documentation

clean:
	rm -rf build dist .venv

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --no-compile --editable . --group dev
	-$(BIN)/python -m compileall -qq -j 0 .venv/lib # as pip would, on all cores; some files never compile
	touch $@
