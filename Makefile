# make quickstart | test | test-slow | soak | lint | install | clients | benchmark-peers.   PYTHON=python3.12 make ... chooses the interpreter.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
CORPUS ?=
WORK ?= work/quickstart

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# DeepSpeed compiles one small op for CPU ranks; it lives and goes with the environment.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions

.PHONY: benchmark-peers clients quickstart install test test-slow soak lint clean

quickstart: $(INSTALLED)
	python launch/quickstart.py --work $(WORK) $(if $(CORPUS),--corpus $(CORPUS))

install: $(INSTALLED)

$(INSTALLED): setup.cfg setup.py pyproject.toml constraints.txt $(wildcard data_prep/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; run PYTHON=python3.12 make install" >&2; exit 2; }
	@command -v c++ >/dev/null || { echo "error: no C++ compiler (c++); install g++ or clang" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	$(VENV)/bin/python -m recipe.engine.cpu_op
	@touch $@

test: $(INSTALLED)
	python -m pytest -m "not slow"

test-slow: $(INSTALLED)
	python -m pytest -m "slow and not soak"

soak: $(INSTALLED)
	python -m pytest -m soak

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

# What others' programs make of exported folders: environments of 10 GB, half an hour; for one, CLIENTS="--client TRL".
clients: $(INSTALLED)
	python tests/clients/check.py --output benchmarks/results/clients.json $(CLIENTS)

benchmark-peers: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<

clean:
	rm -rf $(VENV) .venv-peers .venv-clients work build data_prep/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
