# `make run` sets up an environment and runs the main job; `make test` sets up and passes the tests.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test lint parity clean

run: $(VENV)/.core
	$(BIN)/surefoot train

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 2

# Agreement with TRL and verl. verl pins an older transformers than it needs for its core: hence --no-deps.
parity: $(VENV)/.test
	$(PIP) --editable '.[parity]'
	$(PIP) --no-deps verl==0.9.1
	$(BIN)/python -c 'import trl, verl.trainer.ppo.core_algos'
	$(BIN)/python -m pytest tests/parity

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# torch comes first and by its pinned version, so that nothing later picks another build of it.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
