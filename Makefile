# A newcomer needs two of these: `make demo` and `make test`. Both set the environment up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

ROOMS := common pipelines policy reward environment critic hub evaluation training train_unlearn_lora.py

.PHONY: install demo test test-slow test-all attack lint types canvas clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Erases a style from the bundled pipeline and writes the adapter, the results and the before/after picture to runs/demo.
demo: install
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		train_unlearn_lora.py --concept "Van Gogh style" --output_dir runs/demo --overwrite_output_dir
	@echo "Look at runs/demo/before_after.png; the metrics are in runs/demo/results.json."

# Every room and the main job once: under five minutes on two idle cores. tests/conftest.py has the rule.
test: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST) -m slow

test-all: install
	$(PYTEST)

# Hours of kills, full disks, damaged files and hostile servers, of which the suite tries a hundredth.
attack: install
	ATTACK=full FUZZ_EXAMPLES=1000 $(PYTEST) tests/attack tests/fuzz

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

# Everything but tests and benchmarks.
types: install
	$(BIN)/mypy $(ROOMS)

# Rebuilds the bundled world from its seeds: about an hour and a half on two cores.
canvas: install
	$(BIN)/python -m benchmarks.worlds.canvas

clean:
	rm -rf $(VENV) runs
