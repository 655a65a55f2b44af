# Every target prepares .venv by itself. Needs make and Python 3.11 to 3.14.
PYTHONS = $(shell .ci/interpreters)
PYTHON ?= $(firstword $(PYTHONS))
OLDEST = $(lastword $(PYTHONS))
UV_VERSION := 0.13.8
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-unit test-unit-all test-integration check docs format wheel bench \
	bench-table bench-peers lock upgrade clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	# A .venv that is there keeps its Python.
	test -x $(BIN)/python || { \
		python="$(PYTHON)"; \
		"$${python:?there is no Python 3.11 to 3.14 with venv here: make PYTHON=/path/to/one}" -m venv $(VENV); }
	$(BIN)/python -m pip install -q uv==$(UV_VERSION)
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'
	# Ray starts workers three times slower from uncompiled sources. Files for other Pythons do not compile: no matter.
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib pairmill > /dev/null 2>&1 || true
	touch $(READY)

demo: $(READY)
	$(BIN)/pairmill demo --out demo-out

# Unit and integration tests run in separate processes, because torch's DataLoader forks, which Ray's threads do not survive.
test: test-unit test-integration

test-unit: $(READY)
	$(BIN)/python -m pytest -q -n 2 tests/unit

# Runs the unit tests on every supported Python that is installed, each in an environment of its own.
VERSION = -c 'import sys; print("%d.%d" % sys.version_info[:2])'
test-unit-all: test-unit
	set -e; for python in $(PYTHONS); do \
		version=$$("$$python" $(VERSION)); \
		test "$$version" != "$$($(BIN)/python $(VERSION))" || continue; \
		venv=.venv-py$$version; \
		test -x $$venv/bin/python || $(BIN)/uv venv -q --python "$$python" $$venv; \
		$(BIN)/uv pip install -q --python $$venv/bin/python -c constraints.txt -e '.[dev]'; \
		echo "Python $$version:"; \
		$$venv/bin/python -m pytest -q -n 2 tests/unit; \
	done

# Three processes even on two cores, because integration tests often wait.
test-integration: $(READY)
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder tests/integration

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

# Builds the site in site/. Fails on a broken link in any Markdown file, and on anything that a page loads from other servers.
docs: $(READY)
	$(BIN)/python -m docs.generate
	$(BIN)/python -m docs.links
	$(BIN)/zensical build --strict --clean
	! grep -rE --include='*.html' '<(script|link|img)[^>]*(src|href)="?(https?:)?//' site

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/python -m hatchling build --target wheel

# Prints the table in docs/benchmarks.md, in about 40 minutes. Needs root and bench-peers.
bench-table: $(READY)
	$(BIN)/python -m bench.table

bench: $(READY)
	$(BIN)/python -m bench.decode
	$(BIN)/python -m bench.plan
	$(BIN)/python -m bench.download

# Installs the tools that benchmarks compare with, each in an environment of its own, on the oldest Python, because they support
# new ones late. The benchmarks also need nginx: apt-get install nginx-light
bench-peers: $(READY)
	test -x .venv-peers/bin/python || $(OLDEST) -m venv .venv-peers
	$(BIN)/uv pip install -q --python .venv-peers/bin/python -r bench/peers/requirements.txt
	test -x .venv-clip-retrieval/bin/python || $(OLDEST) -m venv .venv-clip-retrieval
	$(BIN)/uv pip install -q --python .venv-clip-retrieval/bin/python -r bench/peers/requirements-clip-retrieval.txt
	test -x .venv-datacomp/bin/python || $(OLDEST) -m venv .venv-datacomp
	$(BIN)/uv pip install -q --python .venv-datacomp/bin/python -r bench/peers/requirements-datacomp.txt

LOCK = $(BIN)/uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header --all-extras \
	pyproject.toml -o constraints.txt

# Pins what pyproject.toml asks for now, for all Pythons, keeping the versions that are already pinned.
lock: $(READY)
	$(LOCK)

# Pins the newest versions of all dependencies.
upgrade: $(READY)
	$(LOCK) --upgrade

clean:
	rm -rf $(VENV) .venv-py3.* .venv-peers .venv-clip-retrieval .venv-datacomp demo-out bench-out dist \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
