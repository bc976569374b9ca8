# Two commands do it all on a fresh machine: `make demo` and `make test`.
# They need Python 3.11 or newer and make; everything else they install into .venv.

# The first python3 of the PATH; but where that one was built without profile-guided optimisation
# (pyenv's, unless told), the distribution's, if it has one of the same version and all of it: it
# needs a sixth less processor time for each letter (docs/performance.md).
PYTHON ?= $(shell \
	own=$$(python3 -c '$(HOW_BUILT)' 2>/dev/null); \
	theirs=$$($(DISTRIBUTIONS) -c '$(SLOW_TWIN)' 2>/dev/null || echo none); \
	test "$$own" = "$$theirs" && echo $(DISTRIBUTIONS) || echo python3)
DISTRIBUTIONS := /usr/bin/python3
HOW_BUILT := import sys, sysconfig; print(sys.version_info[:2], \
	"--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS")))
# What one of the same version says that is slower; an error where parts of it are not installed.
SLOW_TWIN := import ensurepip, sqlite3, ssl, sys, venv; print(sys.version_info[:2], False)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# The tests of a file run in one worker, so that what they share is started once (a browser, a
# Dovecot), and long files begin first (tests/conftest.py).
SUITE  := $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# Compiled modules are kept, whatever the caller's environment says: the suite starts hundreds of
# processes, and pytest compiles each test module anew for each of its workers otherwise.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo limits microsoft pollers soak test test-sqlite test-postgresql check format screenshots pin clean

demo: $(READY)
	@$(BIN)/python -m config.demo $(if $(ONCE),--once) $(if $(BOUNCES),--bounces $(BOUNCES)) $(if $(GRAPH),--graph)

test: test-sqlite test-postgresql

test-sqlite: $(READY)
	env -u DATABASE_URL $(SUITE) $(ARGS)

# DATABASE_URL points the suite at a PostgreSQL server of yours; otherwise a throw-away one is started.
test-postgresql: $(READY)
	$(BIN)/python -m tests.postgresql $(SUITE) $(ARGS)

# Twenty long runs in which processes are killed at random moments, and twenty with everything else in
# trouble too; takes hours. PENNYPOST_SEEDS=3 or 3-7 chooses among them.
soak: $(READY)
	PENNYPOST_SOAK=1 $(BIN)/pytest tests/end_to_end/test_soak.py $(ARGS)
	PENNYPOST_SOAK=1 $(BIN)/python -m tests.postgresql $(BIN)/pytest tests/end_to_end/test_soak.py $(ARGS)

# Bounce pollers killed at twenty moments with each kind of mailbox, storms at their full size, and
# longer fuzzing.
pollers: $(READY)
	PENNYPOST_SOAK=1 $(BIN)/pytest -m "slow or not slow" tests/bounces $(ARGS)
	PENNYPOST_SOAK=1 $(BIN)/python -m tests.postgresql $(BIN)/pytest tests/bounces/test_killed_poller.py $(ARGS)

# Limits in real time, by three clusters as three hosts (needs a machine with little else to do), and
# all of them over two simulated days.
limits: $(READY)
	$(BIN)/pytest -m slow tests/delivery $(ARGS)
	$(BIN)/python -m tests.postgresql $(BIN)/pytest -m slow tests/end_to_end $(ARGS)

# 12,000 readers over two emulated days through one mailbox of Microsoft 365, with faults of all kinds.
microsoft: $(READY)
	$(BIN)/pytest -m slow tests/microsoft365 $(ARGS)
	$(BIN)/python -m tests.postgresql $(BIN)/pytest -m slow tests/microsoft365 $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy config campaigns delivery bounces
	$(BIN)/lint-imports
	$(BIN)/python manage.py check
	$(BIN)/python manage.py makemigrations --check --dry-run

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pictures of README.md, from a demo of its own. Needs a Chromium.
screenshots: $(READY)
	$(BIN)/python docs/screenshots.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Pennypost needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV) with $(PYTHON) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned packages into $(VENV) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

# After a change of pyproject.toml: the newest versions that it allows become the pinned ones.
pin:
	rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	( echo "# The exact versions that this release was tested with. Written by: make pin"; \
	  $(BIN)/pip freeze --exclude-editable ) > constraints.txt
	touch $(READY)

clean:
	rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
