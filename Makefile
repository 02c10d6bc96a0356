PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AOT := .aot

.PHONY: demo test test-all test-wide test-long test-build test-clients test-docs test-matrix test-aot \
  bench chromium docs notebooks lint types lock clean

demo: $(VENV)/installed
	$(BIN)/python -m demo

# Nearly all that tests take is compilation: XLA hurries where only results are compared.
HURRIED := $(BIN)/python -m xla_options hurried
PYTEST := $(BIN)/python -m pytest -n auto

test: lint types
	$(HURRIED) $(PYTEST) -m "not exact and not wide and not long"
	$(PYTEST) -m "exact and not wide and not long"

# All tests.
test-all: test test-long test-clients test-docs test-build test-wide

# Every case of what crosses settings.
test-wide: lint
	$(HURRIED) $(PYTEST) -m "wide and not exact and not long"
	$(PYTEST) -m "wide and exact and not long"

# What takes long: notebooks, several processes, benchmarks and their records.
test-long: lint
	$(PYTEST) -m long

# Programs of other libraries with this optimizer in them, see docs/compatibility/works_with.md.
test-clients: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/clients/requirements.txt
	$(BIN)/python -m pytest tests/clients

# The site, in docs/_build/html; builds without a network once its tools are installed.
docs: $(VENV)/docs
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html

# Every page in a browser too.
test-docs: $(VENV)/docs chromium
	$(BIN)/python -m pytest tests/site

# From Debian's packages if there is none; without one the pages cannot be tested, and this fails.
chromium:
	@command -v chromium || command -v chromium-browser \
	  || (apt-get update -qq && apt-get install -qq --no-install-recommends chromium fonts-dejavu-core) \
	  || { echo "make test-docs needs Chromium: install the package chromium as root"; exit 1; }

$(VENV)/docs: $(VENV)/installed docs/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint requirements.lock \
	  --requirement docs/requirements.txt
	touch $@

# Every supported Python on this machine, with the lowest, the pinned and the newest versions; each
# run goes into docs/compatibility/versions.md. PYTHONS="3.12 3.13" runs these alone.
test-matrix: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nox --session tests $(if $(PYTHONS),--python $(PYTHONS))

# Executes the .py of every notebook and writes the .ipynb beside it.
notebooks: $(VENV)/installed
	$(BIN)/python notebooks/execute.py

# Wheel and sdist, and the tests of one on the other, on the newest supported Python here.
test-build: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nox --session build

# Compiles for a TPU and a GPU that are not here, and reads the programs.
test-aot: $(AOT)/installed
	$(AOT)/bin/python -m pytest aot

$(AOT)/installed: requirements.lock aot/requirements.txt
	$(PYTHON) -m venv --clear $(AOT)
	$(AOT)/bin/python -m pip install --quiet --constraint requirements.lock \
	  --requirement aot/requirements.txt
	touch $@

# Measures what the optimizer costs; the results are in benchmarks/results.
bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint requirements.lock \
	  --requirement benchmarks/requirements.txt
	$(BIN)/python -m benchmarks idle idle_host memory side_by_side
	$(BIN)/python -m benchmarks --keep-freed-memory idle cycle noise draws
	$(BIN)/python -m xla_options plain_products \
	  $(BIN)/python -m benchmarks --keep-freed-memory factored

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/style.py

types: $(VENV)/installed
	$(BIN)/mypy

# The build backend is pinned in the lock file too, hence no build isolation.
$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Rewrites the pinned versions from pyproject.toml and requirements.in.
lock: $(VENV)/installed
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --extra demo \
	  --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml requirements.in

clean:
	rm -rf $(VENV) $(AOT) .nox demo/output docs/_build docs/notebooks
