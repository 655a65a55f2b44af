"""Invariant: rows are taken in any order from columns of any size. Arrow's own `take` fails for large columns, because
it first concatenates their chunks (arrow#25822)."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common import arrow
from pairmill.pipeline.common.arrow import MAX_ARRAY_BYTES, take_rows


def zeros(rows: int, row_bytes: int) -> pa.StringArray:
    """Strings of NUL characters. The system allocates memory only for the pages that are read."""
    offsets = np.arange(rows + 1, dtype=np.int32) * row_bytes
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(np.zeros(rows * row_bytes, np.uint8)))


@pytest.mark.parametrize("nested", [False, True])
def test_rows_are_taken_from_columns_too_large_for_one_array(nested: bool) -> None:
    large = zeros(1_100, 1 << 20)
    few = pa.array(["first", "second"])
    chunks = [few, large, large, few]
    if nested:
        chunks = [pa.StructArray.from_arrays([chunk], ["text"]) for chunk in chunks]
    table = pa.table({"x": pa.chunked_array(chunks), "row": np.arange(2_204)})
    assert table["x"].nbytes > MAX_ARRAY_BYTES
    rows = np.array([2_203, 1, 1_500, 0, 2_203])
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        table.take(pa.array(rows))
    found = take_rows(table, rows)
    assert found["row"].to_pylist() == rows.tolist()
    texts = [value["text"] if nested else value for value in found["x"].to_pylist()]
    assert [text.rstrip("\0") for text in texts] == ["second", "second", "", "first", "second"]


@given(st.lists(st.lists(st.none() | st.text(max_size=4), max_size=5), min_size=1, max_size=4), st.data())
def test_the_same_rows_are_taken_in_the_same_order_as_by_arrow(
    chunks: list[list[str | None]], data: st.DataObject
) -> None:
    """With a limit of 8 bytes per array, nearly every table is too large."""
    column = pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks])
    table = pa.table({"text": column, "list": pa.array([[each] for each in column.to_pylist()], pa.list_(pa.string()))})
    picked = st.integers(0, max(len(column) - 1, 0))
    rows = np.array(data.draw(st.lists(picked, max_size=8 * bool(len(column)))), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow, "MAX_ARRAY_BYTES", 8)
        found = take_rows(table, rows)
    assert found.schema.equals(table.schema)
    assert found.to_pylist() == table.take(pa.array(rows)).to_pylist()
