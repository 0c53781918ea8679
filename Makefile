# `make demo` and `make test` need nothing but Python 3.10+: they build the environment in .venv themselves.
VENV ?= .venv
PYTHON ?= python3
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-space lint format docs docs-check clean

install: $(INSTALLED)

demo: $(INSTALLED)
	$(VENV)/bin/xacle demo --out demo_output

# Two processes of one thread each: small models gain nothing from a second thread.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

# The page in a real browser: Chromium must be installed (or `$(VENV)/bin/playwright install chromium`).
test-space: $(INSTALLED)
	$(VENV)/bin/python -m pip install -qq --constraint constraints.txt --editable '.[space]' playwright
	$(VENV)/bin/python -m pytest tests/test_space.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(INSTALLED)
	$(VENV)/bin/pdoc --docformat google --output-directory docs_output $(shell sed 's/#.*//' docs/api.txt)

docs-check: $(INSTALLED)
	$(VENV)/bin/python docs/check.py

clean:
	rm -rf $(VENV) demo_output docs_output build *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once)"
	@$(VENV)/bin/python -m pip install -qq --upgrade pip
	@$(VENV)/bin/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	touch $@
