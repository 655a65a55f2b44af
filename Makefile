# Every target sets up .venv if needed. Requires Python 3.11 to 3.14.
PYTHONS = $(shell .ci/interpreters)
PYTHON ?= $(firstword $(PYTHONS))
OLDEST = $(lastword $(PYTHONS))
UV_VERSION := 0.13.8
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-unit unit-folders unit-files test-unit-all test-integration check types lint docs format \
	wheel bench bench-table bench-peers lock upgrade clean

# Where this is set, every test process would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	# An existing .venv keeps its Python.
	test -x $(BIN)/python || { \
		python="$(PYTHON)"; \
		"$${python:?found no Python 3.11 to 3.14 with venv; run make PYTHON=/path/to/python}" -m venv $(VENV); }
	$(BIN)/python -m pip install -q uv==$(UV_VERSION)
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'
	# Ray takes three times as long to start workers from uncompiled sources. Some files are for other Python versions and
	# fail to compile, which is harmless.
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib pairmill/* > /dev/null 2>&1 || true
	touch $(READY)

demo: $(READY)
	$(BIN)/pairmill demo --out demo-out

# Unit and integration tests run in separate processes, because torch's DataLoader forks, which is not safe in a process
# that has Ray's threads.
test: test-unit test-integration

# Runs the unit tests in two processes, which take about as long as each other. pytest-xdist takes a fifth longer: both of
# its processes collect all tests, and a third one receives three reports on each of them.
UNIT_PYTEST = $(BIN)/python -m pytest -q
test-unit: $(READY)
	$(MAKE) --no-print-directory -j 2 --output-sync=target unit-folders unit-files

unit-folders:
	$(UNIT_PYTEST) tests/unit/[a-z]*/

unit-files:
	$(UNIT_PYTEST) tests/unit/*.py

# Runs the unit tests on every supported Python that is installed, in a separate environment for each. What hypothesis
# generates does not depend on the Python, so the others get fewer examples.
VERSION = -c 'import sys; print("%d.%d" % sys.version_info[:2])'
test-unit-all: test-unit
	set -e; for python in $(PYTHONS); do \
		version=$$("$$python" $(VERSION)); \
		test "$$version" != "$$($(BIN)/python $(VERSION))" || continue; \
		venv=.venv-py$$version; \
		test -x $$venv/bin/python || $(BIN)/uv venv -q --python "$$python" $$venv; \
		$(BIN)/uv pip install -q --python $$venv/bin/python -c constraints.txt -e '.[dev]'; \
		echo "Python $$version:"; \
		$(MAKE) --no-print-directory -j 2 --output-sync=target unit-folders unit-files \
			UNIT_PYTEST="$$venv/bin/python -m pytest -q --hypothesis-profile=few"; \
	done

# Uses four processes even on two cores, because integration tests spend much of their time waiting.
test-integration: $(READY)
	.ci/browser
	$(BIN)/python -m pytest -q -m forks tests/integration
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder -m 'not forks' tests/integration

# The types take longer than all other checks together, on one core. `make -j check` uses another one for those.
check: types lint docs

types: $(READY)
	$(BIN)/mypy

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Builds the documentation in site/. Fails if a Markdown file has a broken link, or if a page loads anything from another
# server.
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

# Prints the table in docs/benchmarks.md. Takes about 40 minutes; needs root, and `make bench-peers` first.
bench-table: $(READY)
	$(BIN)/python -m bench.table

bench: $(READY)
	$(BIN)/python -m bench.decode
	$(BIN)/python -m bench.plan
	$(BIN)/python -m bench.download

# Installs the tools that the benchmarks compare pairmill with, in separate environments. These use the oldest supported
# Python, because the tools are slow to support new versions. gcld3, which DataComp's scripts need, is built from source,
# and the benchmarks need nginx: apt-get install nginx-light protobuf-compiler libprotobuf-dev
bench-peers: $(READY)
	test -x .venv-peers/bin/python || $(OLDEST) -m venv .venv-peers
	$(BIN)/uv pip install -q --python .venv-peers/bin/python -r bench/peers/requirements.txt
	test -x .venv-clip-retrieval/bin/python || $(OLDEST) -m venv .venv-clip-retrieval
	$(BIN)/uv pip install -q --python .venv-clip-retrieval/bin/python -r bench/peers/requirements-clip-retrieval.txt
	test -x .venv-datacomp/bin/python || $(OLDEST) -m venv .venv-datacomp
	$(BIN)/uv pip install -q --python .venv-datacomp/bin/python -r bench/peers/requirements-datacomp.txt

LOCK = $(BIN)/uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header --all-extras \
	pyproject.toml -o constraints.txt

# Pins the dependencies in pyproject.toml for all supported Python versions. Keeps the versions that are already pinned.
lock: $(READY)
	$(LOCK)

# Pins the newest version of every dependency.
upgrade: $(READY)
	$(LOCK) --upgrade

clean:
	rm -rf $(VENV) .venv-py3.* .venv-peers .venv-clip-retrieval .venv-datacomp demo-out bench-out dist \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
