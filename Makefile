# Each target makes the environment it needs: `make demo` and `make test` work on a fresh clone.
#
# Needs Python 3.10 to 3.12 and make. The environment is the CPU one of locks/cpu.txt. torch comes by pip, which reads
# your own index settings: where they offer torch's CPU build (for example by PIP_EXTRA_INDEX_URL), that is taken;
# else the CUDA build, several GB larger, which runs on a CPU as well.

PYTHON ?= python3
VENV ?= .venv
LOCK ?= locks/cpu.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# On the path or, where that is pyenv's, any 3.12 that it has.
PINS_PYTHON ?= PYENV_VERSION=3.12 python3.12
PINS_VENV := build/pins
UV := uv==0.13.9
COSMIC_RAY := cosmic-ray==8.7.0
TRL := trl==1.16.0

.PHONY: env demo test test-slow test-all test-pins test-gpu test-servers test-trl bench mutants reference lint types format lock clean
.DEFAULT_GOAL := env

env: $(READY)

$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12) and f"Python 3.10 to 3.12 is needed, $(PYTHON) is {sys.version.split()[0]}; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps '$(UV)' "$$(grep ^torch== $(LOCK))"
	# Compiled once here, or else each of a run's many processes would compile all that it imports.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode -r $(LOCK) -e .
	# The CUDA libraries, where that build of torch came.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode "$$(grep ^torch== $(LOCK))"
	touch $@

demo: $(READY)  ## train a small model with DRA and without on this machine's CPU; ARGS='dra.smi=log_det' sets keys
	$(BIN)/python recipes/tiny_paths/demo.py $(ARGS)

test: $(READY)  ## the fast tests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --durations 10

test-slow: $(READY)  ## the tests that start Ray clusters and train with the real veRL and vLLM
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --durations 30

test-all: test test-slow

test-pins:  ## the fast tests and one training with the versions that veRL itself names, on the Python of its image
	$(MAKE) test VENV=$(PINS_VENV) LOCK=locks/pins.txt PYTHON='$(PINS_PYTHON)'
	$(PINS_VENV)/bin/python -m pytest tests/stack/test_training.py -k 'sync_advantages or recorded_groups'

test-gpu:  ## what only a GPU can show, in the environment of PYTHON, where veRL runs on it
	$(PYTHON) tests/gpu

test-servers: $(READY)  ## a training whose classifier of pairs, behind vLLM's server, is lost in mid-step
	$(BIN)/python -m pytest tests/stack/beside_a_server.py

test-trl: $(READY)  ## recipes/trl in TRL's own trainer, which comes beside the environment
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target build/trl --no-deps '$(TRL)'
	PYTHONPATH=build/trl $(BIN)/python tests/trl_trainer.py

bench: $(READY)
	$(BIN)/python tests/benchmarks

mutants: $(READY)  ## small faults that the fast tests should see; SAMPLE=60 tries so many of each subject
	# Beside the environment: what both need comes from there.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target build/cosmic-ray '$(COSMIC_RAY)'
	$(BIN)/python tests/mutants

reference: $(READY)  ## the tables of verl_dra/README.md, and tests/public.txt: what users rely on
	$(BIN)/python tests/reference.py
	$(BIN)/python tests/public.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY)
	$(call locked,cpu,3.10)
	$(call locked,pins,3.12)

# $(call locked,NAME,PYTHON): NAME.in becomes NAME.txt, for this Python and later ones. vLLM's CPU build names a torch with
# a suffix, of which not every index has one.
define locked
	grep -o '^torch==[^ ]*' locks/$(1).in | $(BIN)/uv pip compile locks/$(1).in --config-file locks/uv.toml \
	  --override locks/overrides.txt --override - --universal --python-version $(2) --no-emit-package verl-dra --no-header \
	  --no-annotate --upgrade -o locks/$(1).txt
endef

clean:
	rm -rf $(VENV) $(PINS_VENV)
