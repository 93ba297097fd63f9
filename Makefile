# Needs Python 3.11 or 3.12, git and make; everything else goes into .venv.
GOOD = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
  $$p -c '$(GOOD)' 2>/dev/null && echo $$p && break; done)
RUN = .venv/bin/python

.PHONY: demo docs test test-slow lint types check

.venv/ready: requirements.lock
	@test -n "$(PYTHON)" \
	  || { echo "Python 3.11 or 3.12 is needed; try make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: .venv/ready  ## D-Fusion and training with the embedded model, scorer in its own process
	@$(RUN) -m experiments.demo

docs: .venv/ready  ## docs/settings.md, from dfusion/settings/schema.py
	$(RUN) -m dfusion.commands.settings_table

test: .venv/ready  ## the default test suite
	$(RUN) -m pytest

test-slow: .venv/ready  ## the slow tests: full-size SD2.1, several processes
	$(RUN) -m pytest -m slow

lint: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: .venv/ready
	$(RUN) -m mypy

check: lint types test
