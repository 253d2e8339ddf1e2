# make demo: install, then run the main job end to end on this machine.
# make test: install, then check and test.   make drills: install, then run the long failure drills.
# make docs: install, then write the documentation to site/.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN := $(VENV)/bin

.PHONY: demo test types tests drills docs clean

demo: $(VENV)/.demo
	$(BIN)/ditlab demo

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory -j2 types tests

types:
	$(BIN)/pyright --pythonpath $(BIN)/python

# A worker for each core, one thread each; a file's tests stay on one worker, in the order of tests/conftest.py.
tests:
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

drills: $(VENV)/.test
	$(BIN)/python benchmarks/drills.py --page docs/reliability.md

docs: $(VENV)/.docs
	$(BIN)/mkdocs build

$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV)
