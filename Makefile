# make quickstart | test | test-slow | soak | lint | install | clients | gpu | benchmark-peers.   PYTHON=python3.12 make ... chooses the interpreter.
PYTHON ?= python3
VENV := .venv
# .venv may be a link to another disk: its own name, so that what is compiled for it is compiled once
ENVIRONMENT := $(or $(realpath $(VENV)),$(CURDIR)/$(VENV))
INSTALLED := $(VENV)/.installed
CORPUS ?=
CURATION ?=
WORK ?= work/quickstart

export PATH := $(ENVIRONMENT)/bin:$(PATH)
# DeepSpeed compiles one small op for CPU ranks; it lives and goes with the environment.
export TORCH_EXTENSIONS_DIR ?= $(ENVIRONMENT)/torch_extensions

.PHONY: benchmark-peers clients gpu quickstart install test test-slow soak lint clean

quickstart: $(INSTALLED)
	python launch/quickstart.py --work $(WORK) $(if $(CORPUS),--corpus $(CORPUS)) $(if $(CURATION),--curation $(CURATION))

install: $(INSTALLED)
	@echo "$(VENV) is ready. In this shell, bash or zsh:"
	@echo "  source launch/env.sh     puts its python, deepspeed and the moe-* commands first on PATH, and sets where kernels are cached"
	@echo "then, for instance:"
	@echo "  make quickstart          documents to a trained, evaluated, exported model on this CPU, 3 to 6 minutes on two cores"
	@echo "  moe-plan --model recipe/configs/models/30b-a3b --ds-config ds_configs/a100_256.json"

$(INSTALLED): setup.cfg setup.py pyproject.toml constraints.txt $(wildcard data_prep/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is not there or older than 3.10; name a newer one: PYTHON=python3.12 make install" >&2; exit 2; }
	@command -v c++ >/dev/null || { echo "error: no C++ compiler (c++); install g++ or clang" >&2; exit 2; }
	@# Sizes of the wheels that constraints.txt pins, November 2026; a CPU environment is 3.2 GB on disk.
	@echo "installing about 170 packages into $(VENV), some minutes: 3 GB to download on Linux, where PyPI's torch brings CUDA;"
	@echo "about 1.2 GB without: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install"
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	@echo "DeepSpeed's collective for CPU ranks is compiled once, about 30 s"
	@# Also where there are GPUs: the quickstart and the tests have CPU ranks.
	DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= TORCH_LOGS=-torch.utils.cpp_extension $(VENV)/bin/python -m recipe.engine.cpu_op
	@touch $@

test: $(INSTALLED)
	python -m pytest -m "not slow and not gpu"

test-slow: $(INSTALLED)
	python -m pytest -m "slow and not soak and not gpu"

soak: $(INSTALLED)
	python -m pytest -m soak

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mdformat --check README.md CHANGELOG.md CONTRIBUTING.md docs ds_configs/README.md
	mypy

# What others' programs make of exported folders: environments of 10 GB, half an hour; for one, CLIENTS="--client TRL".
clients: $(INSTALLED)
	python tests/clients/check.py --output benchmarks/results/clients.json $(CLIENTS)

# Is it right, how fast is it, where is the plan wrong: within ten minutes, of the first GPU; into work/gpu. GPU="--only right"
# is a part of it, GPU="--small" rehearses it on CPU.
gpu: $(INSTALLED)
	python benchmarks/gpu.py $(GPU)

benchmark-peers: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<

clean:
	rm -rf $(VENV) .venv-peers .venv-clients work build data_prep/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
