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

# Agreement with TRL, verl and d3rlpy. verl pins an older transformers, and d3rlpy an older Gymnasium, than what we use
# of them needs: hence --no-deps.
parity: $(VENV)/.test
	$(PIP) --editable '.[parity]'
	$(PIP) --no-deps verl==0.9.1 d3rlpy==2.8.1
	$(BIN)/python -c 'import d3rlpy, trl, verl.trainer.ppo.core_algos'
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
