# make train: a fresh machine to a trained, sampled, plotted model.  make test: the whole CPU suite.
# PYTHON=python3.12 make test  chooses the interpreter that .venv is made with.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-faults lint clean

train: .venv/installed
	$(BIN)/python train.py config/quickstart.py
	$(BIN)/python sample.py --out_dir=out-quickstart --prompt="def main(" --max_new_tokens=100 --temperature=0.8 --seed=1
	$(BIN)/python compare_architectures.py out-quickstart --out=out-quickstart/comparison

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

# Killed, hung and stopped ranks under torchrun, four processes, twenty kills, odd inputs under a fresh seed: minutes, so they
# are not part of make test.  make test-faults FUZZ_SEED=123  repeats the odd inputs of another time.
FUZZ_SEED ?= $(shell date +%s)
test-faults: .venv/installed
	@echo "FUZZ_SEED=$(FUZZ_SEED)"
	FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -o addopts="-q -p no:cacheprovider" tests/faults
	FUZZ_SEED=$(FUZZ_SEED) FUZZ_CASES=1500 $(BIN)/python -m pytest tests/tokenization/test_source_fuzz.py
	SLOW=1 $(BIN)/python -m pytest -n auto --dist loadfile tests/training/test_parallel.py tests/tokenization/test_preparation_resumed.py tests/planning/test_memory.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A finished installation leaves the file `installed`; an interrupted one is repeated.
.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis comparison
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
