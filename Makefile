# Each target does all its set-up on a machine that has only Python (3.11 or newer) and make.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: run install test lint mutate hostile docs clean

run: $(BIN)/.installed        ## the main job: the whole method on the embedded world
	$(BIN)/syn4seg run embedded $(ARGS)

test: $(BIN)/.installed       ## the test suite
	$(BIN)/python -m pytest $(ARGS)

lint: $(BIN)/.installed       ## style, import contracts, types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/pyright

mutate: $(BIN)/.installed     ## mutation testing of labels, metrics, losses and fingerprints; what survives is listed at the end
	$(BIN)/mutmut run $(ARGS) && $(BIN)/mutmut results

hostile: $(BIN)/.installed    ## 1,500 hostile or damaged inputs; counts and every traceback, hang or file outside
	$(BIN)/python -m tests.hostile.inputs $(ARGS)

install: $(BIN)/.installed    ## .venv with everything in it

docs: $(BIN)/.installed       ## writes docs/config.md from the code
	$(BIN)/python docs/make_config.py

# A .venv without a working pip is half made (no python3-venv on Debian, a stop, another Python since) and made anew.
$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON): not found, or older than Python 3.11; name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || \
	  { echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv; then the same command again" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build mutants *.egg-info
