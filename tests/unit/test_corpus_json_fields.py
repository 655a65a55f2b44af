"""Tests the columns that are made from the JSON fields beside pictures: no value is changed, and values that are left
out are counted."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.jobs.job_file import load_job
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.corpus.json_fields import FIELDS_COLUMN, FieldNotes, append_fields, column_names
from pairmill.pipeline.source.describe import describe_plan
from pairmill.pipeline.source.plan import make_plan
from pairmill.pipeline.source.planned import Plan, PlanError
from pairmill.pipeline.source.records import parse_json
from pairmill.schemas.record import JobRecord
from tests.tars import write_tar

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


SCALARS = st.sampled_from(
    ["1e400", "-1E+5", "0.12345678901234567890", "1.10", "-0.0", "7", "9" * 30, "9" * 5_000, "true", '"é"']
)
JSON_TEXTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda items: f"[{', '.join(items)}]"), inner.map('{{"a": {}}}'.format)
    ),
    max_leaves=4,
)
"""JSON with a space after each comma and colon."""


def columns_of(notes: FieldNotes, texts: list[str | None]) -> pa.Table:
    """The columns made from the results of `notes.keep`."""
    types = notes.columns()
    names = column_names(types, [FIELDS_COLUMN])
    index = pa.table({FIELDS_COLUMN: pa.array(texts, pa.string())})
    return append_fields(index, {name: (names[name], types[name]) for name in types})


def as_text(value: Any) -> str:
    """A value as it appears in a text column."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()


@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=4), VALUES, max_size=4), min_size=1, max_size=5))
def test_every_value_arrives_in_a_type_that_can_store_it(rows: list[dict[str, object]]) -> None:
    """The oracle is the parsed objects themselves."""
    rows = [json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) for row in rows]
    notes = FieldNotes()
    texts = [notes.keep(row, ()) for row in rows]
    types, table = notes.columns(), columns_of(notes, texts)
    names = column_names(types, [FIELDS_COLUMN])
    for name in {name for row in rows for name, value in row.items() if value is not None}:
        for row, found in zip(rows, table[names[name]].to_pylist(), strict=True):
            value = row.get(name)
            if value is None:
                assert found is None
            elif pa.types.is_string(types[name]):
                assert found == as_text(value)
            else:
                assert found == value or (math.isnan(found) and math.isnan(value))
                assert type(found) is type(value) or (type(found), type(value)) == (float, int)


@given(st.lists(JSON_TEXTS, min_size=1, max_size=4))
def test_text_columns_have_numbers_as_they_are_written_and_doubles_are_not_infinite(written: list[str]) -> None:
    notes = FieldNotes()
    texts = [notes.keep(parse_json(f'{{"x": {text}}}'), ()) for text in written]
    column = columns_of(notes, texts)["x"]
    for text, found in zip(written, column.to_pylist(), strict=True):
        if pa.types.is_string(column.type):
            assert found == ("é" if text == '"é"' else text)
        else:
            assert found == json.loads(text) != math.inf


@pytest.mark.parametrize("value", [b'"caf\xe9"', b'"\\ud800"', b'["\xff"]'])
def test_a_value_that_is_not_utf8_is_left_out_and_counted(value: bytes) -> None:
    notes = FieldNotes()
    row = parse_json((b'{"x": %b, "y": 1}' % value).decode("utf-8", "surrogateescape"))
    assert (notes.keep(row, ()), notes.left_out) == ('{"y": 1}', 1)


def test_a_field_named_like_a_column_of_the_index_gets_another_name() -> None:
    assert column_names(["key", "licence", "json_key"], ["key", "url"]) == {
        "key": "json_key", "licence": "licence", "json_key": "json_json_key",
    }  # fmt: skip


def plan_of(folder: Path, **tars: list[dict[str, object]]) -> Plan:
    """The plan of tars with one sample per object."""
    (folder / "in").mkdir(exist_ok=True)
    for name, objects in tars.items():
        members = []
        for n, value in enumerate(objects):
            members += [(f"{n}.jpg", b"\xff\xd8\xff picture"), (f"{n}.json", json.dumps(value).encode())]
        write_tar(folder / "in" / f"{name}.tar", members)
    fields = {"source.kind": "corpus", "source.paths": [str(folder / "in")], "output": str(folder / "out")}
    return make_plan(
        JobRecord(load_job(None, {**fields, "models": [{"name": "tiny"}]}), "f"), Store(str(folder / "out"))
    )


def test_large_values_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"caption": "a", "annotations": "x" * 100_000, "licence": "CC0"}, {"caption": "b", "licence": "BY"}]
    plan = plan_of(tmp_path, one=rows)
    assert plan.mapping.extra.names == ["key", "licence"]
    assert plan.inputs[0].left_out_fields == 1
    assert "1 JSON value beside pictures left out" in describe_plan(plan, plan.job)


def test_a_thousand_fields_do_not_become_a_thousand_columns(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, one=[{"caption": "a", **{f"field {n}": n for n in range(1_000)}}])
    assert len(plan.mapping.extra) == 200  # `key` and 199 of the fields
    assert plan.inputs[0].left_out_fields == 801


def test_column_types_can_store_the_values_of_all_tars(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, one=[{"score": 1, "flag": True}], two=[{"score": 0.5, "flag": "yes"}])
    assert plan.mapping.extra.field("score").type == pa.float64()
    assert plan.mapping.extra.field("flag").type == pa.string()


def test_values_in_a_later_tar_must_fit_and_its_new_fields_are_left_out_and_counted(tmp_path: Path) -> None:
    plan_of(tmp_path, one=[{"score": 1}])
    plan = plan_of(tmp_path, two=[{"score": 2, "new": "field"}])
    assert plan.mapping.extra.names == ["key", "score"]
    assert [file.left_out_fields for file in plan.inputs] == [0, 1]
    with pytest.raises(PlanError, match=r"three\.tar: 'score' in the JSON is string, but int64 in this output's plan"):
        plan_of(tmp_path, three=[{"score": "high"}])


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        (b'"\\ud800": 1', ["?"]),
        (b'"\xff": 1', ["\ufffd"]),
        (b'"a\xff": 1, "a\xfe": 2, "b": 3', ["a\ufffd", "b"]),
        (b'"\xc3\xa9": 1, "\xff": 2', ["é", "\ufffd"]),
    ],
)
def test_a_key_that_is_not_utf8_becomes_a_readable_column(tmp_path: Path, fields: bytes, columns: list[str]) -> None:
    """One such key in millions of JSON files must not stop a run of `embed`."""
    (tmp_path / "in").mkdir()
    text = b'{"caption": "c", ' + fields + b"}"
    write_tar(tmp_path / "in/a.tar", [("0.jpg", b"\xff\xd8\xff picture"), ("0.json", text)])
    assert list(plan_of(tmp_path).mapping.extra_columns) == ["key", *columns]
