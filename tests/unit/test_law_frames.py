"""Invariant of pandas and polars frames: every value of a dataset arrives, as itself or as text. Oracles: the column
that a frame converts back to, and text written by hand."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common.arrow import python_values
from pairmill.pipeline.dataset.webdataset_tar import times_as_text
from pairmill.pipeline.reader.frames import pandas_frame, polars_frame

NESTED: list[Callable[[pa.Array], pa.Array]] = [
    lambda leaves: leaves,
    lambda leaves: pa.ListArray.from_arrays([0, len(leaves)], leaves),
    lambda leaves: pa.FixedSizeListArray.from_arrays(leaves, len(leaves)),
    lambda leaves: pa.StructArray.from_arrays([leaves], ["a"]),
    lambda leaves: pa.MapArray.from_arrays([0, len(leaves)], [str(key) for key in range(len(leaves))], leaves),
    lambda leaves: pa.ListArray.from_arrays([0, len(leaves)], pa.StructArray.from_arrays([leaves], ["a"])),
]
CODED: list[Callable[[pa.Array], pa.Array]] = [
    lambda leaves: leaves,
    lambda leaves: pa.DictionaryArray.from_arrays(pa.array(range(len(leaves)), pa.int8()), leaves),
    lambda leaves: pa.ExtensionArray.from_storage(pa.opaque(leaves.type, "type", "vendor"), leaves),
]
"""Types that contain the type of the values."""

DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
TIMES = [
    *(kind(unit) for unit in DAY for kind in (pa.timestamp, pa.duration)),
    *(pa.timestamp("us", zone) for zone in ("UTC", "+05:30", "-09:30", "Europe/Berlin")),
    *(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.date32()),
]


@given(st.sampled_from(TIMES), st.sampled_from(CODED), st.sampled_from(NESTED), st.data())
def test_law_frames_every_time_that_python_has_arrives_as_itself(
    kind: pa.DataType,
    coded: Callable[[pa.Array], pa.Array],
    nested: Callable[[pa.Array], pa.Array],
    data: st.DataObject,
) -> None:
    """polars has no zones like +05:30 (polars#12893)."""
    day = 1 if pa.types.is_date32(kind) else DAY[kind.unit]
    fewest, most = (0, 0) if pa.types.is_time(kind) else (-80_000, 80_000)
    numbers = st.none() | st.integers(fewest, most).map(lambda days: days * day + day // 3)
    values = data.draw(st.lists(numbers, min_size=1, max_size=3))
    leaves = pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    column = nested(leaves)
    table = pa.table({"column": nested(coded(leaves)), "row": range(len(column))})
    assert pa.array(python_values(table["column"]), column.type).equals(column)
    assert pa.array(pandas_frame(table)["column"], column.type).equals(column)
    assert polars_frame(table).to_arrow()["column"].combine_chunks().cast(column.type).equals(column)


@pytest.mark.parametrize("coded", CODED)
@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize(
    ("column", "text", "in_polars"),
    [
        (pa.array([1, None], pa.time64("ns")), "00:00:00.000000001", False),
        (pa.array([86_400, None], pa.time32("s")), "<value out of range: 86400>", True),
        (pa.array([86_400_000_000, None], pa.time64("us")), "<value out of range: 86400000000>", True),
        (pa.array([3_700_000, None], pa.date32()), "12100-04-04", False),
        (pa.array([-3_700_000, None], pa.date32()), "-8161-09-30", False),
    ],
    ids=["nanosecond", "24:00", "24:00 in microseconds", "after 9999", "before 1"],
)
def test_law_frames_a_time_that_python_does_not_have_becomes_text(
    nested: Callable[[pa.Array], pa.Array],
    coded: Callable[[pa.Array], pa.Array],
    column: pa.Array,
    text: str,
    in_polars: bool,
) -> None:
    """pandas used to raise an error that named no column. polars has such years and nanoseconds, but turned 24:00 into
    null. The other columns stay as they are and where they are."""
    expected = nested(pa.array([text, None])).to_pylist()
    values = nested(coded(column))
    table = pa.table({"before": values, "row": range(len(expected)), "after": values})
    frame, of_polars = pandas_frame(table), polars_frame(table)
    assert list(frame.columns) == of_polars.columns == table.column_names
    assert frame["before"].tolist() == frame["after"].tolist() == expected == python_values(values)
    assert frame["row"].dtype == "int64"
    back = of_polars.to_arrow()["after"].combine_chunks()
    if in_polars:
        assert back.to_pylist() == expected
    else:
        assert back.cast(nested(column).type).equals(nested(column))


@pytest.mark.parametrize("coded", CODED)
@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("zone", ["Mars/Phobos", "+25:00", "utc", "-0930"])
def test_law_frames_times_in_an_unknown_zone_arrive_in_utc(
    nested: Callable[[pa.Array], pa.Array], coded: Callable[[pa.Array], pa.Array], zone: str
) -> None:
    """Arrow, Python and polars each know other zones."""
    leaves, utc = pa.array([1, None], pa.timestamp("us", zone)), nested(pa.array([1, None], pa.timestamp("us", "UTC")))
    unknown = nested(coded(leaves))
    table = pa.table({"time": unknown})
    assert python_values(unknown) == python_values(utc)
    assert pa.array(pandas_frame(table)["time"], utc.type).equals(utc)
    assert polars_frame(table).to_arrow()["time"].combine_chunks().cast(utc.type).equals(utc)


@pytest.mark.parametrize("coded", CODED)
@pytest.mark.parametrize(
    ("zone", "text"),
    [("Mars/Phobos", "1970-01-01 00:00:00.000001Z"), ("utc", "1970-01-01 00:00:00.000001Z")]
    + [(zone, "1969-12-31 14:30:00.000001-0930") for zone in ("-0930", "-09:30")],
)
def test_law_frames_the_text_of_times_is_in_their_zone_if_arrow_knows_it(
    coded: Callable[[pa.Array], pa.Array], zone: str, text: str
) -> None:
    """Such text is in the .json files of exports. Python does not know the zone `-0930`."""
    column = coded(pa.array([1, None], pa.timestamp("us", zone)))
    assert python_values(times_as_text(column)) == [text, None]


WIDTHS = [pa.decimal32(5, 2), pa.decimal64(15, 2), pa.decimal128(38, 2), pa.decimal256(10, 2), pa.decimal256(76, 2)]


@pytest.mark.parametrize("coded", CODED)
@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("kind", WIDTHS, ids=str)
def test_law_frames_decimals_of_any_width_arrive(
    nested: Callable[[pa.Array], pa.Array], coded: Callable[[pa.Array], pa.Array], kind: pa.DataType
) -> None:
    leaves = pa.array([Decimal("1.50"), None], kind)
    column = nested(leaves)
    table = pa.table({"price": nested(coded(leaves))})
    assert pa.array(pandas_frame(table)["price"], column.type).equals(column)
    assert _plain(polars_frame(table).to_arrow()["price"].to_pylist()) == _plain(column.to_pylist())


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("text", ["1" * 37 + ".50", "0." + "1" * 39])
def test_law_frames_decimals_that_polars_does_not_have_become_text(
    nested: Callable[[pa.Array], pa.Array], text: str
) -> None:
    """polars used to panic, with an exception that `except Exception` does not catch."""
    kind = pa.decimal256(76, len(text) - text.index(".") - 1)
    table = pa.table({"price": nested(pa.array([Decimal(text), None], kind))})
    assert pa.array(pandas_frame(table)["price"], table["price"].type).equals(table["price"].combine_chunks())
    expected = nested(pa.array([text, None]))
    assert _plain(polars_frame(table).to_arrow()["price"].to_pylist()) == _plain(expected.to_pylist())


def _plain(value: Any) -> Any:
    """Maps and structs as dicts, whichever of them polars converts back to."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return dict(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("names", [[], ["time"]])
def test_law_frames_a_frame_of_any_columns_has_all_rows(names: list[str]) -> None:
    table = pa.table({"time": pa.array([1, 2, 3], pa.time64("ns"))}).select(names)
    assert pandas_frame(table).shape == polars_frame(table).shape == (3, len(names))
    empty = table.slice(0, 0)
    assert pandas_frame(empty).shape == polars_frame(empty).shape == (0, len(names))
