# make demo    install, make the laptop model from nothing, and talk with it
# make test    run the tests
# make check   what CI runs: ruff, mypy, import-linter (a test), tests
# make venv    only install
# make docs    write the generated pages anew
# make kernels build the native kernels anew, after a change in leanseek/kernels/csrc
#
# PYTHON=...     the Python to use (3.11 or newer; found by itself)
# TORCH=...      the torch to install first
# PIP_FLAGS=...  further arguments of pip install, an index with CPU-only torch for one

PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH ?= torch==2.13.0
PIP_FLAGS ?=
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
RUN ?= runs/laptop

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS)
SAY = @printf '\033[1m==> %s\033[0m\n'

.PHONY: demo test check venv docs kernels clean
.DELETE_ON_ERROR:

demo: .venv/.installed
	$(SAY) "making the laptop model in $(RUN): corpus, tokenizer, pretraining, SFT, GRPO, evaluation"
	@$(BIN)/leanseek make laptop --run $(RUN)
	$(SAY) "asking the new model through its own server"
	@$(BIN)/leanseek demo $(RUN)

test: .venv/.test-tools
	$(SAY) "running the tests in $(WORKERS) processes"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

check: .venv/.test-tools
	$(SAY) "ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "some files want: $(BIN)/ruff format ."; exit 1; }
	$(SAY) "mypy"
	@$(BIN)/python -m mypy
	@$(MAKE) --no-print-directory test

venv: .venv/.test-tools
	$(SAY) "installed in .venv: $(BIN)/leanseek --help"

docs: .venv/.test-tools
	@$(BIN)/python docs/generate.py

kernels:
	@cmake -S leanseek/kernels/csrc -B build/kernels >build-kernels.log 2>&1 && \
	cmake --build build/kernels --parallel $(WORKERS) >>build-kernels.log 2>&1 || { cat build-kernels.log; exit 1; }
	@rm -f build-kernels.log

clean:
	rm -rf build leanseek/kernels/*.so .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# The stamps say what stands in .venv; each rule is done once, and again when pyproject.toml changes.
.venv/.made:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv was not found; install it, or give make PYTHON=..."; exit 1; }
	$(SAY) "[1/3] making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.torch: .venv/.made
	$(SAY) "[2/3] installing $(TORCH) (the largest part; minutes on a slow line)"
	@$(PIP) "$(TORCH)"
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(SAY) "[3/3] installing leanseek"
	@rm -rf leanseek/kernels/csrc/CMakeCache.txt leanseek/kernels/csrc/CMakeFiles # of a try with no compiler, perhaps
	@$(PIP) --quiet --editable .
	@touch $@

.venv/.test-tools: .venv/.installed
	$(SAY) "installing what the tests need"
	@$(PIP) --quiet --editable ".[test,dev]"
	@touch $@
