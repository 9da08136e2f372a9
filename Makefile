# Two commands: `make demo` and `make test`. Each installs what it needs into .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Three processes for two cores, since browser tests mostly wait; a file stays in one of them, for its fixtures. Without
# reordering the longest files (browser, notebooks) come first.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all coverage fuzz mutants lab playground lint audit bench notebooks docs zoo clean

demo: $(STAMP)
	$(BIN)/gradprune demo

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

# Which lines of the package the tests run. Browser and spoiled files are left out: they are slow, and limited in time.
coverage: $(STAMP)
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --ignore tests/browser --ignore tests/fuzz

# Spoiled files of every format, ten times as many as in the tests. Failures are kept in out/fuzz/.
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/run.py --count 2000

# Changes the code in one place at a time and counts what no test notices; mutmut lives in an environment of its own.
mutants: $(STAMP)
	$(PYTHON) -m venv out/mutmut
	out/mutmut/bin/pip install --quiet mutmut==3.8.1
	PYTHONPATH=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') \
	  out/mutmut/bin/python tests/mutants.py --workers 2

# Both serve this machine alone, and ask for a token, which stands in the address that they print.
lab: $(STAMP)
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 notebooks/00_start_here.ipynb

playground: $(STAMP)
	$(BIN)/voila --token --Voila.ip=127.0.0.1 notebooks/07_playground.ipynb

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# Known weaknesses of the installed versions, from PyPI; in an environment of its own.
audit: $(STAMP)
	$(PYTHON) -m venv out/audit
	out/audit/bin/pip install --quiet pip-audit
	out/audit/bin/pip-audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_core.py --train
	$(BIN)/python tests/benchmarks/bench_widgets.py
	$(BIN)/python tests/benchmarks/bench_runner.py

notebooks: $(STAMP)
	$(BIN)/python -m gradprune.lessons.build

docs: $(STAMP)
	$(BIN)/python docs/build_api.py

zoo: $(STAMP)
	$(BIN)/gradprune zoo build

# The stamp is newer than pyproject.toml only when the last install went through.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradprune needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e ".[notebooks,dev]"
	touch $(STAMP)

clean:
	rm -rf .venv out build dist
