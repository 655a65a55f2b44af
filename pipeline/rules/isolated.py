"""A custom rule in a child process, for shards that killed their worker: the rows that do it cost themselves alone."""

import atexit
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.child import Child, ChildDied
from pairmill.pipeline.rules.custom import CustomRule, load_custom_rule

RULE_TIMEOUT_S = 600.0
"""A rule that takes longer for the rows of one shard is taken for hung."""


class IsolatedRule:
    """Stands in for a custom rule's function."""

    def __init__(self, name: str, search: Path, timeout_s: float = RULE_TIMEOUT_S) -> None:
        self._name, self._search, self._timeout_s = name, str(search), timeout_s
        self._child = Child(_nothing)
        atexit.register(self._child.close)

    def __call__(self, rows: pa.Table) -> Any:
        """The rule's verdict. Raises what the rule raised, and ChildDied."""
        return self._child.call(_run, self._name, self._search, rows, timeout_s=self._timeout_s)

    def survives(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """(rows,): False for each row on which the rule kills its process, found by halves."""
        alive = np.ones(rows.num_rows, dtype=bool)
        suspects = [(0, rows.num_rows)]
        while suspects:
            start, end = suspects.pop()
            try:
                self(rows.slice(start, end - start))
            except ChildDied:
                if end - start == 1:
                    alive[start] = False
                else:
                    middle = (start + end) // 2
                    suspects += [(start, middle), (middle, end)]
        return alive


@cache
def isolated(name: str, search: Path) -> CustomRule:
    """`module:function`, to be called in a child, which ends with this process. Raises ValueError."""
    step = load_custom_rule(name, search).step
    return CustomRule(name, IsolatedRule(name, search), step)


def _nothing() -> None: ...


@cache
def _loaded(name: str, search: str) -> CustomRule:
    return load_custom_rule(name, Path(search))


def _run(name: str, search: str, rows: pa.Table) -> Any:
    return _loaded(name, search).function(rows)
