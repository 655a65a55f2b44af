# Every target prepares .venv by itself. Needs Python 3.11 or 3.12 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
UV_VERSION := 0.13.8
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-unit test-integration check docs format bench bench-peers lock clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13), "pairmill needs Python 3.11 or 3.12: make PYTHON=..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv==$(UV_VERSION)
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'
	# Ray starts workers three times slower from uncompiled sources. Files for other Pythons do not compile: no matter.
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib pairmill > /dev/null 2>&1 || true
	touch $(READY)

demo: $(READY)
	$(BIN)/pairmill demo --out demo-out

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

test-unit: $(READY)
	$(BIN)/python -m pytest -q -n 2 tests/unit

test-integration: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/integration

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

# The site, in site/. A broken link ends it, also one in a Markdown file that is no page.
docs: $(READY)
	$(BIN)/python -m docs.generate
	$(BIN)/python -m docs.links
	$(BIN)/zensical build --strict --clean

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m bench.decode
	$(BIN)/python -m bench.plan
	$(BIN)/python -m bench.download

# The tools that bench.fetch compares with, in an environment of their own. Needs nginx too: apt-get install nginx-light
bench-peers: $(READY)
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	$(BIN)/uv pip install -q --python .venv-peers/bin/python -r bench/peers/requirements.txt
	test -x .venv-clip-retrieval/bin/python || $(PYTHON) -m venv .venv-clip-retrieval
	$(BIN)/uv pip install -q --python .venv-clip-retrieval/bin/python -r bench/peers/requirements-clip-retrieval.txt

# New versions of everything: names and versions only, for both Pythons.
lock: $(READY)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header \
		--all-extras --upgrade pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) .venv-peers .venv-clip-retrieval demo-out bench-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
