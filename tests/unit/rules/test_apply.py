"""Invariant of rules: no row disappears, each row gets exactly one verdict, and a broken rule raises an error."""

import sys
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common.text import trace_of
from pairmill.pipeline.rules import CustomRule, CustomRuleError, SourceRules, apply_rules, base, rule
from pairmill.pipeline.rules.isolated import IsolatedRule
from pairmill.schemas.status import Status, Step

STEPS = (Step.CAPTION, Step.URL, Step.IMAGE, Step.SCORE)
STRICT = SourceRules(
    license_column="license",
    caption_min_chars=3,
    caption_min_words=2,
    caption_drop_file_names=True,
    caption_drop_dates=True,
    caption_drop_hashes=True,
    caption_drop_urls=True,
    caption_boilerplate=["default"],
    caption_blocked_terms=["red", "a b"],
    caption_languages=["en", "de"],
    license_allow=["x"],
    url_block_hosts=["b.example"],
    url_allow_hosts=["example"],
    image_min_side=10,
    image_max_aspect=2,
    image_min_bytes=10,
    image_max_area=1000,
    image_drop_one_color=True,
    min_similarity={"tiny": 0.2},
)
CAPTIONS = st.none() | st.text(max_size=30) | st.sampled_from(["a red dog sleeps here", "IMG_1.jpg", "2020-01-01"])
URLS = st.none() | st.text(max_size=30) | st.sampled_from(["http://a.example/x", "http://b.example/", "ftp://x/"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "caption_clean": CAPTIONS,
            "url": URLS,
            "status": st.sampled_from(["ok", "ok", "ok", "timeout", "caption_invalid"]),
            "license": st.sampled_from(["x", "y", None]),
            "original_width": st.none() | st.integers(0, 50),
            "original_height": st.none() | st.integers(0, 50),
            "original_bytes": st.none() | st.integers(0, 50),
            "one_color": st.none() | st.booleans(),
            "similarity_tiny": st.none() | st.floats(width=32),
        }
    ),
    max_size=12,
)


@given(ROWS)
def test_rows_and_verdicts_are_never_lost_or_changed(in_flight: Any, rows: list[dict[str, object]]) -> None:
    before = in_flight([{"status_detail": None if row["status"] == "ok" else "why"} | row for row in rows])
    for step in STEPS:
        after = apply_rules(before, step, STRICT)
        assert after.schema.equals(before.schema, check_metadata=True)
        others = [name for name in before.column_names if name not in ("status", "status_detail", "similarity_tiny")]
        assert after.select(others).equals(before.select(others))
        verdicts = [table.select(["status", "status_detail"]).to_pylist() for table in (before, after)]
        for old, new in zip(*verdicts, strict=True):
            assert new == old or (old["status"] == "ok" and Status(new["status"]).step is step)
        before = after


def test_a_row_gets_the_first_status_in_the_order_of_the_enum(in_flight: Any) -> None:
    rules = SourceRules(caption_min_words=5, caption_min_chars=5, caption_drop_dates=True)
    table = apply_rules(in_flight([{"caption_clean": "2020"}, {"caption_clean": "2020-01-01"}]), Step.CAPTION, rules)
    assert table["status"].to_pylist() == ["caption_too_short", "caption_too_few_words"]


def test_empty_tables_are_accepted(in_flight: Any) -> None:
    for step in STEPS:
        assert apply_rules(in_flight([]), step, STRICT).num_rows == 0
        assert apply_rules(in_flight([{"status": "timeout"}]), step, STRICT)["status"].to_pylist() == ["timeout"]


def test_rules_never_see_the_pictures_and_do_not_copy_them(in_flight: Any) -> None:
    table = in_flight([{"caption_clean": ""}, {}])
    seen = []

    def see(rows: pa.Table) -> Any:
        seen.extend(rows.column_names)
        return pa.array([True] * rows.num_rows)

    after = apply_rules(table, Step.CAPTION, SourceRules(), [CustomRule("spy:see", see, Step.CAPTION)])
    addresses = [[buffer.address for buffer in t["image"].chunk(0).buffers() if buffer] for t in (table, after)]
    assert addresses[0] == addresses[1]
    assert "caption_clean" in seen and "image" not in seen


def test_chunked_tables_give_the_same_verdicts(in_flight: Any) -> None:
    rows = [{"caption_clean": text} for text in ("a", "two words", None, "2020-01-01", "a red dog")]
    parts = pa.concat_tables([in_flight([row]) for row in rows])
    rules = SourceRules(caption_min_words=2, caption_blocked_terms=["red"])
    whole = apply_rules(in_flight(rows), Step.CAPTION, rules)
    assert apply_rules(parts, Step.CAPTION, rules)["status"].to_pylist() == whole["status"].to_pylist()


def test_details_are_truncated_to_200_characters(in_flight: Any) -> None:
    rules = SourceRules(license_allow=["x"], license_column="license")
    table = apply_rules(in_flight([{"license": "ä" * 1000}]), Step.CAPTION, rules)
    assert table["status_detail"].to_pylist() == ["ä" * 200]


def test_custom_rules_run_at_their_step_after_the_built_in_rules_in_the_given_order(in_flight: Any) -> None:
    def first(rows: pa.Table) -> Any:
        assert rows["caption_clean"].to_pylist() == ["kept", "cat", "dog"]
        return pc.not_equal(rows["caption_clean"], "cat"), pa.array([None, "a cat", None])

    def second(rows: pa.Table) -> Any:
        return pc.not_equal(rows["caption_clean"], "dog")

    custom = [
        CustomRule("my:first", first, Step.CAPTION),
        CustomRule("my:second", second, Step.CAPTION),
        CustomRule("my:late", second, Step.SCORE),
    ]
    table = in_flight([{"caption_clean": text} for text in ("kept", "", "cat", "dog")])
    after = apply_rules(table, Step.CAPTION, SourceRules(), custom)
    assert after["status"].to_pylist() == ["ok", "caption_missing", "custom_rule", "custom_rule"]
    assert after["status_detail"].to_pylist() == [None, None, "my:first: a cat", "my:second"]
    assert apply_rules(table, Step.URL, SourceRules(), custom)["status"].to_pylist() == ["ok"] * 4


def test_a_null_verdict_drops_the_row(in_flight: Any) -> None:
    custom = [CustomRule("my:null", lambda rows: pa.array([True, None], pa.bool_()))]
    table = apply_rules(in_flight([{}, {}]), Step.SCORE, SourceRules(), custom)
    assert table["status"].to_pylist() == ["ok", "custom_rule"]


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "NoneType"),
        ([True, True], "list"),
        (pa.array([1, 1]), "int64"),
        (pa.array([True]), "1 for 2 rows"),
        ((pa.array([True, False]), pa.array([1, 2])), "string array"),
        ((pa.array([True, False]), pa.array(["x"])), "string array"),
        ((pa.array([True, False]), None, None), "tuple"),
    ],
)
def test_a_custom_rule_that_returns_no_verdict_is_an_error(in_flight: Any, returned: Any, says: str) -> None:
    custom = [CustomRule("my:broken", lambda rows: returned)]
    with pytest.raises(CustomRuleError, match=f"my:broken.*{says}"):
        apply_rules(in_flight([{}, {}]), Step.SCORE, SourceRules(), custom)


class Speechless(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class InItsProcess(IsolatedRule):
    """A rule that has raised SystemExit in its child process."""

    def __init__(self) -> None: ...

    def __call__(self, rows: pa.Table) -> pa.Array:
        raise RuntimeError("SystemExit: 0")


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda rows: rows["no_such_column"], "KeyError: .*no_such_column"),
        (lambda rows: sys.exit(0), "SystemExit: 0"),
        (lambda rows: _raise(Speechless()), "Speechless: its message cannot be read"),
        (InItsProcess(), "SystemExit: 0"),
    ],
)
def test_the_error_of_a_custom_rule_names_it_however_it_fails(in_flight: Any, function: Any, says: str) -> None:
    with pytest.raises(CustomRuleError, match=f"my:crash failed: .*{says}") as caught:
        apply_rules(in_flight([{}]), Step.SCORE, SourceRules(), [CustomRule("my:crash", function)])
    assert caught.value.__cause__ is not None
    assert "my:crash" in trace_of(caught.value)


def test_a_built_in_rule_that_returns_too_few_values_is_an_error(
    in_flight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base._REGISTRY, Status.LOW_SIMILARITY, lambda rows, rules: pa.array([True]))
    with pytest.raises(TypeError, match="1 for 2 rows"):
        apply_rules(in_flight([{}, {}]), Step.SCORE, SourceRules())


def test_a_status_can_have_only_one_rule() -> None:
    with pytest.raises(ValueError, match="LOW_SIMILARITY already has a rule: low_similarity"):
        rule(Status.LOW_SIMILARITY)(lambda rows, rules: None)
