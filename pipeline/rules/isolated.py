"""Runs custom rules in a child process, for shards that killed their worker: only rows that crash a rule are lost."""

import atexit
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.child import Child, ChildDied
from pairmill.pipeline.rules.custom import CustomRule, load_custom_rule

RULE_TIMEOUT_S = 600.0
"""A rule that takes longer than this for the rows of one shard counts as hung."""

_MAX_CRASHES = 20
"""A rule that crashes on this many rows before it survives any is broken: each crash takes up to a second."""


class IsolatedRule:
    """Like a custom rule's function, but run in a process that may die."""

    def __init__(self, name: str, search: Path, timeout_s: float = RULE_TIMEOUT_S) -> None:
        self._name, self._search, self._timeout_s = name, str(search), timeout_s
        self._child = Child(_start_idle)
        atexit.register(self._child.close)

    def __call__(self, rows: pa.Table) -> Any:
        """The rule's verdict. Raises whatever the rule raised, or ChildDied if its process died."""
        return self._child.call(_run, self._name, self._search, rows, timeout_s=self._timeout_s)

    def survives(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """bool [rows]: False for each row on which the rule crashes its process. These rows are found by bisection.

        Raises ChildDied if there seem to be no others.
        """
        alive = np.ones(rows.num_rows, dtype=bool)
        suspects = [(0, rows.num_rows)]
        any_survived, crashes = False, 0
        while suspects:
            start, end = suspects.pop()
            try:
                self(rows.slice(start, end - start))
                any_survived = True
            except ChildDied:
                if end - start == 1:
                    alive[start] = False
                    crashes += 1
                    if crashes == _MAX_CRASHES and not (any_survived or self._survives_one(rows, suspects)):
                        raise ChildDied(f"its process died on each of the {_MAX_CRASHES} rows tried") from None
                else:
                    middle = (start + end) // 2
                    suspects += [(start, middle), (middle, end)]
        return alive

    def _survives_one(self, rows: pa.Table, ranges: list[tuple[int, int]]) -> bool:
        """Whether the rule survives the first row of any of these ranges."""
        for start, _ in ranges:
            with suppress(ChildDied):
                self(rows.slice(start, 1))
                return True
        return False


@cache
def isolated(name: str, search: Path) -> CustomRule:
    """The custom rule `module:function`, run in a child process that ends with this process. Raises ValueError."""
    step = load_custom_rule(name, search).step
    return CustomRule(name, IsolatedRule(name, search), step)


def _start_idle() -> None: ...


@cache
def _load(name: str, search: str) -> CustomRule:
    return load_custom_rule(name, Path(search))


def _run(name: str, search: str, rows: pa.Table) -> Any:
    return _load(name, search).function(rows)
