"""Tests `dataset.show()`: which rows come first, and that a grid is inert HTML."""

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.reader.grid import Card, Grid, Order, first_rows
from pairmill.pipeline.reader.thumbnails import RowRef, Thumbnail

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> \u202egnp.exe {{ 7*7 }} javascript:alert(3)"

floats = st.floats(-2, 2) | st.sampled_from([float("nan"), float("inf"), -float("inf")])
integers = st.integers(0, 2) | st.integers((1 << 60) - 2, (1 << 60) + 2)
kinds = st.sampled_from([(pa.float64(), floats), (pa.int64(), integers), (pa.uint64(), integers)])


@given(st.data(), kinds, st.integers(1, 8), st.none() | st.floats(-2, 2), st.booleans())
def test_the_first_rows_equal_those_of_a_full_sort(
    data: st.DataObject, kind: tuple[pa.DataType, Any], n: int, around: float | None, lowest: bool
) -> None:
    shards = data.draw(st.lists(st.lists(st.none() | kind[1], max_size=12), max_size=4))
    order = Order("similarity", around, lowest)
    tables = [
        (position, np.arange(len(column)), pa.chunked_array([pa.array(column, kind[0])]))
        for position, column in enumerate(shards)
    ]
    every = [
        (value, RowRef(position, row))
        for position, column in enumerate(shards)
        for row, value in enumerate(column)
        if value is not None and value == value
    ]
    if around is None:
        expected = sorted(every, key=lambda pair: (pair[0] if lowest else -pair[0], pair[1]))[:n]
    else:
        closest = sorted(every, key=lambda pair: (abs(pair[0] - around), pair[1]))[:n]
        expected = sorted(closest, key=lambda pair: (-pair[0], pair[1]))
    assert first_rows(tables, order, n) == [(ref, value) for value, ref in expected]


def test_captions_in_a_grid_are_text_and_nothing_in_the_grid_runs_or_loads() -> None:
    jpeg, missing = Thumbnail(b"\xff\xd8", 1, 1), Thumbnail(None, problem="no picture stored")
    cards = [Card(jpeg, "0.500", HOSTILE, "ok", True, HOSTILE), Card(missing, None, None, HOSTILE, False, "u")]
    page = Tags()
    page.feed(Grid(HOSTILE, cards)._repr_html_())
    assert page.tags <= {"div", "style", "ul", "li", "img", "p", "b", "span", "i"}
    assert page.attributes <= {"class", "title", "src", "alt"}
    assert page.sources == ["data:image/jpeg;base64,/9g="]
    assert "<script>alert(1)</script>" in page.text
    assert "\u202e" not in page.text
    assert "49" not in page.text


class Tags(HTMLParser):
    """Collects the tags, attributes, sources and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: list[str | None] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.sources += [value for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data
