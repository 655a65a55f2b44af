"""Tests that if a custom rule crashes its process, only the rows that cause the crash are lost."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pairmill.pipeline import rules
from pairmill.pipeline.common.child import ChildDied
from pairmill.pipeline.rules import SourceRules, apply_rules, isolated
from pairmill.pipeline.rules.isolated import IsolatedRule
from pairmill.schemas.status import Status, Step

FATAL = """
import os
import pyarrow.compute as pc
from pairmill.pipeline.rules import at

@at("caption")
def fatal(rows):
    if any("poison" in caption for caption in rows["caption"].to_pylist()):
        os.abort()
    return pc.not_equal(rows["caption"], "dull")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "own_fatal.py").write_text(FATAL)
    yield tmp_path
    sys.modules.pop("own_fatal", None)


def test_rows_that_kill_the_rules_process_are_dropped_and_the_rule_checks_the_others(
    folder: Path, in_flight: Any
) -> None:
    table = in_flight([{"caption": caption} for caption in ("poison", "bright", "dull")])
    rule = isolated("own_fatal:fatal", folder)
    judged = apply_rules(table, Step.CAPTION, SourceRules(), [rule])
    found = {row: value for row, value in enumerate(judged["status"].to_pylist()) if value != Status.OK}
    assert found == {0: "rule_crashed", 2: "custom_rule"}
    assert judged["status_detail"][0].as_py() == "own_fatal:fatal: its process died"


@given(rows=st.integers(1, 40), data=st.data())
@settings(deadline=None)
def test_bisection_finds_exactly_the_fatal_rows(rows: int, data: st.DataObject) -> None:
    deadly = data.draw(st.sets(st.integers(0, rows - 1)) | st.just(set(range(rows // 3, rows))))
    assume(len(deadly) < max(rows, 20))

    class Rule(IsolatedRule):
        def __init__(self) -> None: ...

        def __call__(self, some: pa.Table) -> None:
            if deadly & set(some["n"].to_pylist()):
                raise ChildDied

    alive = Rule().survives(pa.table({"n": range(rows)}))
    assert {row for row in range(rows) if not alive[row]} == deadly


def test_a_rule_that_crashes_on_every_row_is_an_error_after_twenty_rows() -> None:
    class Rule(IsolatedRule):
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, some: pa.Table) -> None:
            self.calls += 1
            raise ChildDied

    rule = Rule()
    with pytest.raises(ChildDied, match="died on each of the 20 rows"):
        rule.survives(pa.table({"n": range(4_096)}))
    assert rule.calls < 60


def test_a_rule_that_does_not_load_is_an_error_before_any_process_starts(folder: Path) -> None:
    with pytest.raises(ValueError, match="no function 'other'"):
        rules.isolated("own_fatal:other", folder)
