# make demo     real data in, a scored profile out; a second run does not repeat what is done
# make demo-quick   the same of five blocks, one of them on half the days for half the epochs, without the judge
# make test     the fast tests, in two processes; WORKERS=8 says in how many
# make test-full   all tests: those that start processes too
# make test-long   kills, bad inputs and mutants by the hundred: hours; its last lines say how many of each; KILLS=5 fewer
# make lint     style and types
# make setup    only the .venv
# make audit    known vulnerabilities and the licences of what is installed; asks PyPI
# Another interpreter: make setup PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A file's tests stay together: what they share is made once; the longest files begin. One thread each, so that the processes leave each other room.
WORKERS ?= 2
# Half the days and half the epochs: docs/ablations.md has what that costs.
QUICK_DCN := ["snapshots.count=13","snapshots.stride=14","trainer.max_epochs=3"]
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-quick setup test test-full test-long lint audit clean

demo: $(READY)
	$(BIN)/python scripts/demo.py $(ARGS)

demo-quick: $(READY)
	$(BIN)/python scripts/demo.py "merges=[basics,past_windows]" "judged=[]" 'overrides={dcn: $(QUICK_DCN)}' $(ARGS)

setup: $(READY)

test: $(READY)
	$(TEST) -m "not full and not long" --hypothesis-profile=quick $(ARGS)

test-full: $(READY)
	$(TEST) -m "not long" $(ARGS)

# One process: the counts of all tests are printed together.
test-long: $(READY)
	$(BIN)/python -m pytest -m long -s tests $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# With tools in an environment of their own: they are no part of what they look at.
audit: $(READY)
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 pip-licenses==5.5.5
	$(VENV)/audit/bin/pip-licenses --python=$(BIN)/python --from=mixed --summary
	$(VENV)/audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The mark is written last: an interrupted set-up is taken up again.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV): a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)
