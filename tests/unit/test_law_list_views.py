"""Invariant of list views: whatever contains them, each row is read with its own values.

The oracle is `to_pylist` of the values before they are written.
"""

from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.cursor import Cursor
from pairmill.pipeline.source.list_views import as_lists
from pairmill.pipeline.source.texts import plain_type, raw_byte_lists, readable

VIEWS = (pa.list_view, pa.large_list_view)
WRAPPERS = (
    *VIEWS,
    pa.list_,
    pa.large_list,
    lambda kind: pa.list_(kind, 2),
    lambda kind: pa.struct({"a": kind, "b": pa.string()}),
    lambda kind: pa.map_(pa.string(), kind),
)
NULLS = pa.array([False, False, True, False, False])
LEAVES = {pa.int32(): st.integers(0, 99), pa.string(): st.text("aé", max_size=3), pa.bool_(): st.booleans()}


def _values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if kind in LEAVES:
        return st.none() | LEAVES[kind]
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({field.name: _values(field.type) for field in kind})
    if pa.types.is_map(kind):
        return st.none() | st.lists(st.tuples(st.text("ab", max_size=1), _values(kind.item_type)), max_size=2)
    size = {"min_size": 2, "max_size": 2} if pa.types.is_fixed_size_list(kind) else {"max_size": 3}
    return st.none() | st.lists(_values(kind.value_type), **size)


@st.composite
def columns(draw: st.DrawFn) -> pa.Array:
    """A column with list views, inside of other types and around them."""
    kind = draw(st.sampled_from(list(LEAVES)))
    for wrappers in (WRAPPERS, VIEWS, WRAPPERS)[draw(st.integers(0, 1)) : draw(st.integers(2, 3))]:
        kind = draw(st.sampled_from(wrappers))(kind)
    return pa.array(draw(st.lists(_values(kind), min_size=1, max_size=9)), kind)


@settings(max_examples=settings.default.max_examples // 2)
@given(columns(), st.integers(1, 9), st.integers(1, 9))
def test_every_row_with_list_views_is_read_with_its_own_values(column: pa.Array, group_rows: int, step: int) -> None:
    values = column.to_pylist()
    with NamedTemporaryFile(suffix=".parquet") as file:
        pq.write_table(pa.table({"column": column}), file.name, row_group_size=group_rows)
        cursor = Cursor(Store(file.name), file.name, f"size:{Path(file.name).stat().st_size}")
        starts = range(0, len(values), step)
        tables = [cursor.rows(start, min(step, len(values) - start)) for start in starts]
        cursor.close()
    found = pa.concat_tables(tables)["column"]
    assert found.to_pylist() == values
    assert readable(found.combine_chunks()).to_pylist() == values


@given(columns(), st.integers(0, 9), st.integers(0, 9))
def test_a_slice_with_list_views_becomes_the_same_rows_with_lists(column: pa.Array, start: int, length: int) -> None:
    part = column.slice(min(start, len(column)), length)
    lists, plain = as_lists(part), readable(part)
    for found in (lists, plain):
        found.validate(full=True)
        assert found.to_pylist() == part.to_pylist()
    assert lists.type == plain.type == plain_type(column.type)


@pytest.mark.parametrize("view", [pa.ListViewArray, pa.LargeListViewArray])
def test_list_views_whose_items_are_out_of_order_or_shared_keep_their_values(view: Any) -> None:
    column = view.from_arrays([4, 0, 1, 2, 6], [2, 3, 0, 3, 0], pa.array(list("abcdef")), mask=NULLS)
    expected = [["e", "f"], ["a", "b", "c"], None, ["c", "d", "e"], []]
    assert as_lists(column).to_pylist() == readable(column).to_pylist() == expected
    texts = [None if row is None else [item.encode() for item in row] for row in expected]
    assert raw_byte_lists(pa.chunked_array([column, column.slice(1)])).to_pylist() == texts + texts[1:]
