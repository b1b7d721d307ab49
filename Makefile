# make bench   the environment, then a sweep on this machine; ARGS='…' passes options on
# make test    the environment, then every test that this machine can run
# make check   format, lint, types, the direction of imports

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What a shell may have exported for other purposes; a sweep reads these, so here they are left out.
CLEAN := env -u MODEL -u PORT -u TP -u TEAM_NAME_ENV
ARGS ?=

.PHONY: bench test check clean

bench: $(VENV)/.made
	$(CLEAN) $(BIN)/python -m pytest --isl 128 --osl 128 $(ARGS)

test: $(VENV)/.made
	$(CLEAN) $(BIN)/python -m pytest tests -W error $(ARGS)

check: $(VENV)/.made
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Made anew when the lock changes: a half-updated environment is none.
$(VENV)/.made: requirements.lock pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
