"""Checks the input and output invariants on many more generated inputs than the tests do.

    python -m bench.doors --minutes 30

An invariant ("law") is a `test_law_*` in `tests`, with an independent oracle. Each round runs all of them with a new
random seed, and with the hypothesis profile `doors` from `tests/conftest.py`. Prints the number of examples and
failures per file. Failures are printed in full, with all that is needed to reproduce them.
"""

import argparse
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest

EXAMPLES = re.compile(r"(\d+) passing, (\d+) failing")
"""Matches one line per phase in hypothesis's statistics."""


class Counts:
    """A pytest plugin that counts the tests, examples and failures of each file."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()
        self.examples: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.names: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one finished test."""
        law = Path(report.fspath).stem
        if report.failed:
            self.failed[law] += 1
            self.names.add(report.nodeid)
        self.cases[law] += report.when == "call"

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Count the examples of a test. A test without generated examples counts as one."""
        tried = EXAMPLES.findall(getattr(item, "hypothesis_statistics", ""))
        self.examples[item.path.stem] += sum(int(passing) + int(failing) for passing, failing in tried) or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="minutes after which no new round starts")
    parser.add_argument("--examples", type=int, default=1_000, help="generated inputs per invariant and round")
    parser.add_argument("--only", default="law", help="which invariants to run, as for pytest's -k")
    arguments = parser.parse_args()
    os.environ["DOORS_EXAMPLES"] = str(arguments.examples)
    counts, rounds, started = Counts(), 0, time.monotonic()
    laws = sorted(map(str, Path("tests").rglob("test_law_*.py")))
    while time.monotonic() - started < 60 * arguments.minutes:
        seed = random.randrange(2**32)
        options = ["-q", "--no-header", "--hypothesis-profile=doors", f"--hypothesis-seed={seed}", "-k", arguments.only]
        pytest.main([*options, "-p", "no:cacheprovider", "--timeout=3600", *laws], plugins=[counts])
        rounds += 1
    for law, cases in sorted(counts.cases.items()):
        print(f"{law:<40}{cases:>8,} tests{counts.examples[law]:>12,} inputs{counts.failed[law]:>6} failed")
    minutes = (time.monotonic() - started) / 60
    inputs, failed = counts.examples.total(), len(counts.names)
    print(f"{inputs:,} inputs in {rounds} rounds, {minutes:.0f} min: {failed} invariants failed")
    for name in sorted(counts.names):
        print(name)


if __name__ == "__main__":
    main()
