# infermesh: `make run` for a local mesh, `make test` for everything CI runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_SECONDS ?= 1500
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help run test lint fmt bench soak chaos machine freeze clean

help: ## say what each target does
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

run: $(VENV)/.ready ## set up if needed, then start a local mesh on http://127.0.0.1:8000
	@exec $(BIN)/mesh up

test: $(VENV)/.ready lint ## set up if needed, then everything CI runs
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m tests.limited $(TEST_SECONDS) $(BIN)/python -m coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 $(TESTS)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report

lint: $(VENV)/.ready ## formatting, ruff, types, import contracts
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo > $(VENV)/contracts.log || { cat $(VENV)/contracts.log; exit 1; }

fmt: $(VENV)/.ready ## format and mend what can be mended
	@$(BIN)/ruff check -q --fix .
	@$(BIN)/ruff format -q .

bench: $(VENV)/.ready ## measure: writes JSON beside docs/benchmarks.md
	@$(BIN)/python -m tests.bench

soak: $(VENV)/.ready ## measure for half an hour in network namespaces (as root); PART=joins, deaths, wan, churn, engine, grammar or restarts for one
	@$(BIN)/python -m tests.soak $(PART)

chaos: $(VENV)/.ready ## kill, stop, cut and starve a mesh under load; every answer is compared with the undisturbed run
	@$(BIN)/python -m tests.chaos

machine: ## check what this machine lacks and name the command that installs it
	@PYTHON="$(PYTHON)" sh .ci/machine

freeze: $(VENV)/.ready ## write constraints.txt from what is installed
	@sed -n 1p constraints.txt > $(VENV)/frozen
	@$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | sort -f >> $(VENV)/frozen
	@mv $(VENV)/frozen constraints.txt

clean: ## remove what make made
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.ready: pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh .ci/machine
	@echo "Setting up $(VENV): about two minutes, once ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q pip==26.3
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[worker]' --group dev
	@# trio-typing (needed by py-libp2p) ships stubs of an old trio, which would hide trio's own types from the type checker.
	@rm -rf $(VENV)/lib/python3*/site-packages/trio-stubs
	@touch $@
