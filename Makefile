# `make demo` and `make test` need nothing but Python 3.11+: they build the environment in .venv themselves.
VENV ?= .venv
PYTHON ?= python3
INSTALLED := $(VENV)/.installed

# What the page's tests run in: a Chromium that is installed, Debian's, or playwright's own. Without any, they are skipped.
CHROMIUM = { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null; } \
	|| $(VENV)/bin/playwright install chromium \
	|| echo "no Chromium could be installed"

# Documented by `make docs`: the files that travel with a model, and the packages.
MODULES = $(patsubst %/__init__.py,%.py,$(wildcard *_beats.py *_xacle.py $(addsuffix /*.py,\
	core soundscapes clap scoring conversion publish train train/* demo)))

.PHONY: install demo test test-integration lint format docs docs-check clean

install: $(INSTALLED)

demo: $(INSTALLED)
	$(VENV)/bin/xacle demo --out demo_output

# Two processes of one thread each: small models gain nothing from a second thread.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not integration" --numprocesses 2 --dist loadfile

# The page in a real browser, and Ray. Installs their packages and, if need be, Chromium.
test-integration: $(INSTALLED)
	$(VENV)/bin/python -m pip install -qq --constraint constraints.txt --editable '.[ray,space]' playwright
	@$(CHROMIUM)
	$(VENV)/bin/python -m pytest -m integration

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(INSTALLED)
	$(VENV)/bin/pdoc --docformat google --output-directory docs_output $(addprefix xacle.,$(subst /,.,$(MODULES:.py=)))

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
