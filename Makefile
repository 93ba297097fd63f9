# Needs Python 3.11 or 3.12, git and make; everything else goes into .venv.
GOOD = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
  $$p -c '$(GOOD)' 2>/dev/null && echo $$p && break; done)
RUN = .venv/bin/python

.PHONY: demo docs quick test test-slow lint types check

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

# Files of the suite that need no run of a model's rounds.
QUICK = tests/method tests/settings/test_declaration.py tests/settings/test_check.py \
  tests/settings/test_prompt_files.py \
  tests/storage/test_files.py tests/test_layers.py tests/training/test_order.py \
  tests/training/test_loss_scale.py

quick: .venv/ready  ## the tests of the maths, the overlay, settings and imports: half a minute
	$(RUN) -m pytest $(QUICK)

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
