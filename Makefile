# Every target sets up what it needs in .venv; a second run starts at once.
#   make run     the GPT task in examples/task.json on the embedded model, offline
#   make test    the whole test suite
#   make check   what CI runs: lint, types, docs, test
# Another package index for torch: make test TORCH_INDEX=https://...

PYTHON      ?= python3
TORCH_INDEX ?=
VENV        := .venv
BIN         := $(VENV)/bin
INSTALL      = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
               $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help run test tiny fmt lint types docs bench check clean

help:
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

run: $(VENV)/.run-stamp  ## run examples/task.json on the embedded model
	@$(BIN)/llmkit task examples/task.json

test: $(VENV)/.dev-stamp  ## run the test suite
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

tiny: $(VENV)/.dev-stamp  ## rebuild the embedded model (about half an hour on two cores)
	$(BIN)/python -m tools.tiny.build

fmt: $(VENV)/.dev-stamp  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.dev-stamp  ## ruff, import rules, spelling, freshness of what is generated
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m tools.schema --check
	$(BIN)/python -m tools.parameter_table --check

types: $(VENV)/.dev-stamp  ## pyright, strict on llmkit and the backends
	$(BIN)/pyright

docs: $(VENV)/.dev-stamp  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev-stamp  ## the benchmarks
	$(BIN)/python -m benchmarks

check: lint types docs test  ## everything CI runs

clean:  ## remove .venv and everything built
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# `make run` needs the library and one backend, all of it from wheels: nothing is compiled.
$(VENV)/.run-stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("llmkit needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || { echo "Creating $(VENV)" >&2; $(PYTHON) -m venv $(VENV); }
	@echo "Installing llmkit[transformers] into $(VENV) (torch is a large download)" >&2
	@$(INSTALL) --only-binary :all: -e ".[transformers]"
	@touch $@

# The example of a backend is a distribution of its own, found through its entry point; what it needs is there by then.
$(VENV)/.dev-stamp: $(VENV)/.run-stamp examples/custom_backend/pyproject.toml
	@echo "Installing the development tools into $(VENV)" >&2
	@$(INSTALL) -e ".[transformers,llama-cpp,openai,lora,ray,data,structured,dev]"
	@$(INSTALL) --no-deps -e examples/custom_backend
	@touch $@
