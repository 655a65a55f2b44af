"""Invariant of types: an input value arrives unchanged, or the job stops and names the files.

Oracles: exact comparisons of input and output in Python; DuckDB for partition folders; pandas for text; JSON and the
tables of YAML 1.2 for job files.
"""

import csv
import datetime
import decimal
import gzip
import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from pairmill.jobs.job_file import load_job
from pairmill.jobs.yaml_loader import load_yaml
from pairmill.pipeline.common.arrow import python_values
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.parquet import read_table, write_table
from pairmill.pipeline.source import cursor as cursor_module
from pairmill.pipeline.source.columns import CAPTION_NAMES, URL_NAMES
from pairmill.pipeline.source.corpus.discover import IMAGE_NAMES
from pairmill.pipeline.source.cursor import Cursor, ReadError
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.partitions import partitions_of
from pairmill.pipeline.source.plan import make_plan
from pairmill.pipeline.source.planned import PlanError
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import shards_from_table
from pairmill.schemas.record import JobRecord

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"
DUCKDB = duckdb.connect(config={"threads": 1})
FEW = settings(
    deadline=None,
    max_examples=settings.default.max_examples // 4,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

KINDS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.decimal128(10, 2), pa.decimal128(38, 0), pa.bool_()),
    *(pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.binary(2), pa.null()),
    *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.timestamp("us", "UTC"), pa.timestamp("us", "Europe/Berlin"), pa.date32(), pa.date64(), pa.duration("s")),
    *(pa.duration("us"), pa.time32("ms"), pa.time64("ns"), pa.list_(pa.int32()), pa.list_(pa.float32())),
    *(pa.list_(pa.string()), pa.struct({"a": pa.int32()}), pa.struct({"a": pa.float32()})),
]


@contextmanager
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp())
    try:
        (made / "in").mkdir()
        yield made
    finally:
        shutil.rmtree(made)


def read_all(where: Path, **source: Any) -> pa.Table:
    """Plan everything in the folder `in` and read it back."""
    config = {"paths": [str(where / "in")], **source}
    models = [{"name": "tiny"}] if source.get("kind") == "corpus" else []
    values = {"source": config, "output": str(where / "out"), "shard_rows": 100, "models": models}
    job = BuildJob.model_validate(values)
    store = Store(job.output)
    plan = make_plan(JobRecord(job, "job"), store)
    reader = ShardReader(store, plan.mapping)
    try:
        return pa.concat_tables([reader.read(shard) for shard in shards_from_table(plan.shards)])
    finally:
        reader.close()


def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    near = [value for value in (low, high, 0, 2**24 + 1, 2**53, 2**53 + 1, 2**63) if low <= value <= high]
    return st.sampled_from(near) | st.integers(low, high)


def _values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Values that `pa.array` accepts for the type; for times, the integers that represent them."""
    if pa.types.is_integer(kind):
        bits = kind.bit_width
        return _integers(0, 2**bits - 1) if "u" in str(kind) else _integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if pa.types.is_floating(kind):
        return st.floats(width={2: 16, 4: 32, 8: 64}[kind.byte_width])
    if pa.types.is_decimal(kind):
        return st.decimals(-(10 ** (kind.precision - kind.scale)) + 1, 10**8 - 1, places=kind.scale)
    if pa.types.is_date64(kind):
        return st.integers(-100_000, 100_000).map(lambda day: day * 86_400_000)
    if pa.types.is_time(kind):
        return st.integers(0, 86_399_999)
    if pa.types.is_temporal(kind):
        limit = 2**31 - 1 if kind.bit_width == 32 else 2**52 if kind.unit == "s" else 2**62
        return _integers(-limit, limit)  # Parquet has no unit of seconds, so milliseconds are written
    if pa.types.is_list(kind):
        return st.lists(st.none() | _values(kind.value_type), max_size=2)
    if pa.types.is_struct(kind):
        return _values(kind.field("a").type).map(lambda value: {"a": value})
    if pa.types.is_fixed_size_binary(kind):
        return st.binary(min_size=2, max_size=2)
    plain = {pa.bool_(): st.booleans(), pa.binary(): st.binary(max_size=3), pa.null(): st.none()}
    return plain.get(kind, st.text("aé🙂\r\n ", max_size=3))


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    if pa.types.is_temporal(kind):
        return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
    if kind == pa.float16():
        return pa.array([None if value is None else np.float16(value) for value in values], kind)
    return pa.array(values, kind)


def exact(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values in a form that Python can compare exactly: NaN as text, times in nanoseconds, and text as bytes."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    if pa.types.is_temporal(kind):
        unit = "ms" if pa.types.is_date64(kind) else "day" if pa.types.is_date32(kind) else kind.unit
        scale = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1, "day": 86_400 * 10**9}[unit]
        numbers = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist()
        return [None if number is None else number * scale for number in numbers]

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, (float, np.floating)):
            return "nan" if math.isnan(value) else float(value)
        return value.encode() if isinstance(value, str) else value

    return [plain(value) for value in array.to_pylist()]


@st.composite
def two_columns(draw: st.DrawFn) -> tuple[pa.Array, pa.Array]:
    """The values of a column in two files. The two types are usually of the same family."""
    kind = draw(st.sampled_from(KINDS))
    near = [other for other in KINDS if str(other)[:3] == str(kind)[:3] or ("int" in f"{kind}" and "t" in f"{other}")]
    kinds = (kind, draw(st.sampled_from(near) | st.sampled_from(KINDS)))
    lists = [draw(st.lists(st.none() | _values(each), min_size=1, max_size=3)) for each in kinds]
    return _array(lists[0], kinds[0]), _array(lists[1], kinds[1])


def write_values(where: Path, name: str, values: pa.Array) -> None:
    """Write a list of URLs that no other file has, with these values as a second column."""
    urls = [f"http://{name}.org/{row}" for row in range(len(values))]
    pq.write_table(pa.table({"url": urls, "value": values}), where / "in" / f"{name}.parquet")


@given(columns=two_columns())
@example(columns=(pa.array([2**64 - 1], pa.uint64()), pa.array([-1], pa.int64())))
@example(columns=(pa.array([1, 2**63 - 1], pa.uint64()), pa.array([-1], pa.int64())))
@example(columns=(pa.array([2**53 + 1], pa.int64()), pa.array([0.5])))
@example(columns=(pa.array([2**53], pa.int64()), pa.array([0.5])))
@FEW
def test_law_types_a_value_arrives_unchanged_or_the_error_names_both_files(columns: tuple[pa.Array, pa.Array]) -> None:
    with folder() as where:
        for name, values in zip("ab", columns, strict=True):
            write_values(where, name, values)
        try:
            answer = read_all(where)
        except SourceError as error:
            assert all(f"in/{name}.parquet" in str(error) for name in "ab")
            assert columns[0].type != columns[1].type
            return
        assert exact(answer["value"]) == exact(columns[0]) + exact(columns[1])


@given(columns=two_columns())
@FEW
def test_law_types_a_new_file_of_another_type_arrives_unchanged_or_is_refused_by_name(
    columns: tuple[pa.Array, pa.Array],
) -> None:
    with folder() as where:
        for name, values in zip("ab", columns, strict=True):
            write_values(where, name, values)
            try:
                answer = read_all(where)
            except PlanError as error:
                assert name == "b" and "in/b.parquet" in str(error)
                return
        assert exact(answer["value"]) == exact(columns[0]) + exact(columns[1])


def test_law_types_types_that_not_every_reader_knows_become_plainer() -> None:
    select = "select 'http://{}.org/1' as url, uuid() as id, '{{\"a\": 1}}'::json as note, [uuid()] as ids"
    wide, short = (decimal.Decimal(f"{'9' * digits}.10") for digits in (60, 3))
    with folder() as where:
        for name in "ab":
            DUCKDB.execute(f"copy ({select.format(name)}) to '{where}/in/{name}.parquet'")
        table = pq.read_table(where / "in" / "b.parquet")
        assert isinstance(table.schema.field("id").type, pa.BaseExtensionType)
        plain = table.set_column(1, "id", table["id"].cast(pa.binary(16)))  # not a conflict
        decimals = {"wide": pa.array([wide], pa.decimal256(70, 2)), "short": pa.array([short], pa.decimal256(20, 2))}
        pq.write_table(
            pa.table({**dict(zip(plain.column_names, plain, strict=True)), **decimals}), where / "in/b.parquet"
        )
        answer = read_all(where)
        pq.write_table(answer, where / "out.parquet")
        frame = polars.read_parquet(where / "out.parquet")
    kinds = [answer.schema.field(name).type for name in ("id", "note", "ids", "wide", "short")]
    assert kinds[:2] == [pa.binary(16), pa.string()]
    assert kinds[2].value_type == pa.binary(16)
    assert kinds[3:] == [pa.string(), pa.decimal128(20, 2)]
    assert answer.column("id")[1].as_py() == plain["id"][0].as_py()
    assert frame.filter(polars.col("note") == '{"a": 1}').height == 2
    assert (frame["wide"][1], frame["short"][1]) == (str(wide), short)


def test_law_types_the_reported_uint64_and_int64_are_refused_naming_both_files() -> None:
    with folder() as where:
        for name in ("u0.parquet", "u1.parquet"):
            shutil.copy(CASES / name, where / "in" / name)
        with pytest.raises(SourceError, match=r"'hash' is int64 in .*u1.parquet but uint64 in .*u0.parquet"):
            read_all(where)


@given(
    moments=st.lists(st.none() | st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31)), min_size=1),
    nanoseconds=st.sampled_from([0, 0, 1, 789]),
)
@example(moments=[datetime.datetime(9999, 12, 31)], nanoseconds=0)
@FEW
def test_law_types_int96_arrives_in_microseconds_or_is_refused(
    moments: list[datetime.datetime | None], nanoseconds: int
) -> None:
    values = pa.array(moments, pa.timestamp("us"))
    if nanoseconds:
        in_range = [each for each in moments if each is not None and 1700 < each.year < 2200]
        assume(in_range)
        integers = pa.array(in_range, pa.timestamp("us")).cast(pa.timestamp("ns")).cast(pa.int64())
        values = pa.array([each + nanoseconds for each in integers.to_pylist()]).cast(pa.timestamp("ns"))
    with folder() as where:
        urls = [f"http://a.org/{row}" for row in range(len(values))]
        table = pa.table({"url": urls, "at": values})
        pq.write_table(table, where / "in" / "a.parquet", use_deprecated_int96_timestamps=True)
        if nanoseconds:
            with pytest.raises(ReadError, match=r"a.parquet: column 'at' has nanoseconds in the old type INT96"):
                read_all(where)
        else:
            assert exact(read_all(where)["at"]) == exact(values)


@pytest.mark.parametrize("lists", [pa.list_, pa.list_view, pa.large_list_view])
def test_law_types_int96_arrives_in_lists_of_every_kind(lists: Any) -> None:
    moments = [datetime.datetime(2020, 1, 1), datetime.datetime(9999, 12, 31)]
    values = pa.array([moments, None, [], moments[1:]], lists(pa.timestamp("us")))
    with folder() as where:
        table = pa.table({"url": [f"http://a.org/{row}" for row in range(len(values))], "value": values})
        pq.write_table(table, where / "in" / "a.parquet", use_deprecated_int96_timestamps=True)
        assert read_all(where)["value"].to_pylist() == values.to_pylist()


SIBLINGS = [
    pa.array([86_400 * 10**6, 1, None], pa.time64("us")),  # 24:00, which DuckDB and PostgreSQL write
    pa.array([90_000_000, -1, None], pa.time32("ms")),
    pa.array([1_234_567_891, 1, None], pa.time64("ns")),
    pa.array([2**63 - 1, -(2**63), None], pa.timestamp("us")),  # DuckDB's infinity
    pa.array([2**50, 1, None], pa.timestamp("us", "Mars/Olympus")),
    pa.array([1_234_567_891, 1, None], pa.timestamp("ns")),
    pa.array([2**31 - 1, -(2**31), None], pa.date32()),
    pa.array([2**62 + 1, 1, None], pa.duration("ns")),
    pa.Array.from_buffers(pa.decimal128(5, 2), 3, [None, pa.py_buffer(bytes(range(48)))]),  # too many digits
    pa.array([b"\xff", b"", None]),
]
"""Values that Arrow calls invalid, or that Python's types cannot store."""


@pytest.mark.parametrize("values", SIBLINGS, ids=lambda values: str(values.type))
@pytest.mark.parametrize("broken", [b"a\xff", b"ok"])
def test_law_types_values_beside_text_of_any_bytes_arrive_unchanged(values: pa.Array, broken: bytes) -> None:
    raw = pa.array([broken, None, b"b"])
    texts = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    pairs = pa.StructArray.from_arrays([texts, values], ["text", "value"], mask=pa.array([False, False, False]))
    nested = {
        "plain": values,
        "struct": pairs,
        "lists": pa.ListArray.from_arrays([0, 1, 1, 3], pairs),
        "maps": pa.MapArray.from_arrays([0, 1, 1, 3], pa.array(["a", "b", "c"]), pairs),
    }
    with folder() as where:
        urls = [f"http://a.org/{row}" for row in range(3)]
        pq.write_table(pa.table({"url": urls, **nested}), where / "in" / "a.parquet")
        written = pq.read_table(where / "in" / "a.parquet")
        found = read_all(where)
    assert found["plain"].combine_chunks().equals(written["plain"].combine_chunks())
    for name in ("struct", "lists", "maps"):
        ours, theirs = (table[name].combine_chunks() for table in (found, written))
        if name == "lists":
            assert ours.value_lengths().equals(theirs.value_lengths())
            ours, theirs = ours.flatten(), theirs.flatten()
        elif name == "maps":
            assert ours.keys.equals(theirs.keys) and ours.offsets.equals(theirs.offsets)
            ours, theirs = ours.items, theirs.items
        assert ours.field("value").equals(theirs.field("value"))
        assert ours.field("text").to_pylist() == [broken.decode("utf-8", "replace"), None, "b"]


def test_law_types_24_o_clock_never_becomes_midnight_in_json() -> None:
    late = pa.array([86_400 * 10**6], pa.time64("us"))
    for values in (
        late,
        pa.MapArray.from_arrays([0, 1], pa.array(["key"]), late),
        pa.ListArray.from_arrays([0, 1], late),
    ):
        assert "86400000000" in str(python_values(values))


REQUIRED = pa.struct([pa.field("a", pa.int32(), nullable=False)])


@pytest.mark.parametrize("wrap", [lambda kind: kind, pa.list_, lambda kind: pa.struct({"s": kind})])
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.struct({"a": pa.int32()}), {"a": None}, {"a": None}),
        (pa.struct([pa.field("b", pa.int32(), nullable=False)]), {"b": 2}, {"a": None, "b": 2}),
        (pa.struct([pa.field("a", pa.float64(), nullable=False)]), {"a": 0.5}, {"a": 0.5}),
    ],
)
def test_law_types_a_field_that_one_file_requires_may_be_missing_or_null_in_another(
    wrap: Any, kind: pa.DataType, value: dict[str, object], expected: dict[str, object]
) -> None:
    def wrapped(each: object) -> object:
        return {pa.list_: [each]}.get(wrap, each if wrap(pa.int8()) == pa.int8() else {"s": each})

    with folder() as where:
        write_values(where, "a", pa.array([wrapped({"a": 1})], wrap(REQUIRED)))
        write_values(where, "b", pa.array([wrapped(value)], wrap(kind)))
        found = read_all(where)["value"].to_pylist()
    first = {"a": 1, "b": None} if "b" in expected else {"a": 1}
    assert found == [wrapped(first), wrapped(expected)]


def with_bytes_replaced(path: Path, old: bytes, new: bytes) -> None:
    """Change a Parquet file where neither a length nor a checksum covers the bytes."""
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("column", [pa.array([1]), pa.array([{"NAME": 1}]), pa.array([[{"NAME": 1}]])])
def test_law_types_a_column_whose_name_is_not_utf8_is_refused_with_its_file(column: pa.Array) -> None:
    with folder() as where:
        path = where / "in" / "a.parquet"
        pq.write_table(pa.table({"url": ["http://a.org/1"], "NAME": column}), path, store_schema=False)
        with_bytes_replaced(path, b"NAME", b"N\xffM\xe9")
        with pytest.raises(SourceError, match=r"a.parquet: the name of a column is not UTF-8; rename the column"):
            read_all(where)


def test_law_types_maps_with_optional_keys_are_refused_with_their_file() -> None:
    with folder() as where:
        path = where / "in" / "a.parquet"
        maps = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))
        pq.write_table(pa.table({"url": ["http://a.org/1"], "map": maps}), path, store_schema=False)
        with_bytes_replaced(path, b"\x25\x00\x18\x03key", b"\x25\x02\x18\x03key")  # in Thrift: required, optional
        with pytest.raises(SourceError, match=r"a.parquet: a column contains maps with optional keys"):
            read_all(where)


def outcome(columns: tuple[pa.Array, ...], name: str, **options: Any) -> list[Any] | str:
    """The values read back from files that each have one of the columns, called `name`, and a struct `a` with a field
    `b`. If reading fails, the error message."""
    with folder() as where:
        for number, values in enumerate(columns):
            urls = [f"http://a.org/{number}/{row}" for row in range(len(values))]
            structs = pa.array([{"b": 2**40, "c": 0}] * len(urls), pa.struct({"b": pa.int64(), "c": pa.int8()}))
            table = pa.table({"url": urls, "a": structs, name: values})
            pq.write_table(table, where / "in" / f"{number}.parquet", **options)
        try:
            return exact(read_all(where)[name])
        except (SourceError, ReadError) as error:
            return str(error).replace(str(where), "").replace(repr(name), "")


@given(columns=two_columns())
@example(columns=(pa.array([2**60 + 1]), pa.array([0.5])))
@example(columns=(pa.array([1]), pa.array([0.5])))
@example(columns=(pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))))
@FEW
def test_law_types_a_dot_in_a_name_has_no_meaning(columns: tuple[pa.Array, pa.Array]) -> None:
    """Parquet joins names with dots, so `a.b` is also the path of the field `b` in a struct `a` (arrow#11347)."""
    assert outcome(columns, "a.b") == outcome(columns, "value")


@pytest.mark.parametrize("asked", [["a.b"], ["a"], ["a.b", "a"], ["a.c", "a.b"], ["b"], []])
def test_law_types_only_the_dataset_columns_with_the_requested_names_are_read(tmp_path: Path, asked: list[str]) -> None:
    table = pa.table({"b": [0, 1], "a": [{"b": 2, "c": 3}, None], "a.b": [4, 5], "a.c": [[{"b": 6}], []]})
    store = Store(str(tmp_path))
    with store.new_file() as file:
        write_table(table, file)
        store.create_from("x.parquet", file)
    found = read_table(store, "x.parquet", asked)
    assert found.equals(table.select([name for name in table.column_names if name in asked]))


@pytest.mark.parametrize("nanoseconds", [0, 1])
def test_law_types_a_dot_in_the_name_of_an_int96_column_hides_no_nanoseconds(nanoseconds: int) -> None:
    values = (pa.array([1_600_000_000_000_000_000 + nanoseconds], pa.timestamp("ns")),)
    answers = [outcome(values, name, use_deprecated_int96_timestamps=True) for name in ("value", "a.b", "a.c.d", ".a")]
    assert answers == [answers[0]] * 4
    assert isinstance(answers[0], str) == bool(nanoseconds)


@pytest.mark.parametrize("kind", ["urls", "corpus"])
@given(name=st.sampled_from(["", " ", "_", "-", "a.b", "x\ny", "uid", "status", "source_"]) | st.text(max_size=3))
@example(name="")
@FEW
def test_law_types_a_carried_column_of_any_name_arrives_without_losing_rows(kind: str, name: str) -> None:
    assume(name.strip().casefold() not in {*URL_NAMES, *CAPTION_NAMES, *IMAGE_NAMES})  # these have roles
    key = "url" if kind == "urls" else "caption"
    settings_ = {} if kind == "urls" else {"kind": "corpus"}
    with folder() as where:
        pq.write_table(
            pa.table({key: ["http://a.org/1", "http://a.org/2"], name: [71, 72]}), where / "in" / "a.parquet"
        )
        found = read_all(where, **settings_)
    assert found["status"].to_pylist() == ["ok", "ok"]
    assert [71, 72] in [column.to_pylist() for column in found.columns]


FOLDER_NAMES = st.text("aZ0é .=/%+_-", min_size=1, max_size=4)


@given(values=st.lists(FOLDER_NAMES, min_size=1, max_size=3, unique=True))
@FEW
def test_law_types_a_partition_in_a_folder_name_is_a_column_as_in_duckdb(values: list[str]) -> None:
    with folder() as where:
        for number, value in enumerate(values):
            inner = where / "in" / f"lang={quote(value, safe='')}" / "year=2020"
            inner.mkdir(parents=True)
            pq.write_table(pa.table({"url": [f"http://a.org/{number}"]}), inner / "a.parquet")
        found = read_all(where)
        query = f"""
            select url, lang, year from read_parquet('{where}/in/**/*.parquet', hive_partitioning = true,
                                                     hive_types_autocast = false) order by url
        """  # noqa: S608
        expected = DUCKDB.execute(query).fetchall()
    assert sorted(zip(*(found[name].to_pylist() for name in ("url", "lang", "year")), strict=True)) == expected


@given(values=st.lists(st.text("aZé .?#[]*+\n", min_size=1, max_size=4), min_size=1, max_size=4, unique=True))
@example(values=["a?b", "a#b", "a\nb", "plain"])
@FEW
def test_law_types_a_partition_that_polars_writes_arrives(values: list[str]) -> None:
    """Polars encodes fewer characters than other writers. DuckDB cannot always read its folders, so Polars is the
    oracle."""
    with folder() as where:
        frame = polars.DataFrame({"url": [f"http://a.org/{number}" for number in range(len(values))], "lang": values})
        target = polars.PartitionBy(where / "in", key="lang", include_key=False)
        frame.lazy().sink_parquet(target, mkdir=True)
        found = read_all(where)
        assert dict(zip(found["url"].to_pylist(), found["lang"].to_pylist(), strict=True)) == dict(frame.rows())


@pytest.mark.parametrize(
    ("uri", "partitions"),
    [
        ("https://a.org/lang=en/a.parquet?sig=x/year=1/b", {"lang": "en"}),
        ("https://a.org/lang=en/a.parquet#x=1/b", {"lang": "en"}),
        ("s3://bucket/lang=a?b/year=a%23b/a.parquet", {"lang": "a?b", "year": "a#b"}),
    ],
)
def test_law_types_the_query_of_a_url_contains_no_partitions(uri: str, partitions: dict[str, str]) -> None:
    assert partitions_of(uri) == partitions


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "url,caption\nhttp://a.org/1,one\n"),
        ("a.jsonl", '{"url": "http://a.org/1", "caption": "one"}\n'),
        ("a.txt", "http://a.org/1\n"),
    ],
)
def test_law_types_a_partition_of_a_text_file_is_a_column(name: str, text: str) -> None:
    with folder() as where:
        for lang in ("en", "__HIVE_DEFAULT_PARTITION__"):
            (where / "in" / f"lang={lang}").mkdir()
            (where / "in" / f"lang={lang}" / name).write_text(text)
        assert set(read_all(where)["lang"].to_pylist()) == {"en", None}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "url,caption\nhttp://a.org/1,\u00e9\n"),
        ("a.jsonl", '{"url": "http://a.org/1", "caption": "\u00e9"}\n'),
        ("a.json", '[{"url": "http://a.org/1", "caption": "\u00e9"}]'),
        ("a.txt", "http://a.org/1\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_law_types_a_gzipped_file_is_read_whatever_its_extension(name: str, text: str, encoding: str) -> None:
    with folder() as where:
        (where / "in" / name).write_bytes(gzip.compress(text.encode(encoding)))
        (row,) = read_all(where).to_pylist()
    assert row["url"] == "http://a.org/1"
    assert row["caption"] == ("\u00e9" if "caption" in text else None)


def test_law_types_a_column_of_the_file_takes_precedence_over_a_partition() -> None:
    with folder() as where:
        (where / "in" / "lang=en").mkdir()
        pq.write_table(pa.table({"url": ["http://a.org/1"], "lang": ["de"]}), where / "in" / "lang=en" / "a.parquet")
        assert read_all(where)["lang"].to_pylist() == ["de"]


def test_law_types_a_partition_with_a_usual_name_is_used_only_if_no_file_has_such_a_column() -> None:
    with folder() as where:
        inner = where / "in" / "caption=blip" / "url=cdn"
        inner.mkdir(parents=True)
        pq.write_table(pa.table({"image_url": ["http://a.org/1"], "text": ["a dog"]}), inner / "a.parquet")
        found = read_all(where)
        assert (found["url"].to_pylist(), found["caption"].to_pylist()) == (["http://a.org/1"], ["a dog"])
        assert (found["source_url"].to_pylist(), found["source_caption"].to_pylist()) == (["cdn"], ["blip"])
    with folder() as where:
        (where / "in" / "caption=dog").mkdir()
        pq.write_table(pa.table({"url": ["http://a.org/1"]}), where / "in" / "caption=dog" / "a.parquet")
        assert read_all(where)["caption"].to_pylist() == ["dog"]


def test_law_types_a_partition_does_not_turn_captions_into_a_list_of_urls() -> None:
    with folder() as where:
        (where / "in" / "url=cdn").mkdir()
        pq.write_table(pa.table({"caption": ["a dog"]}), where / "in" / "url=cdn" / "a.parquet")
        values = {"source": {"paths": [str(where / "in")], "kind": "corpus"}, "output": str(where / "out")}
        job = BuildJob.model_validate({**values, "models": [{"name": "tiny"}]})
        plan = make_plan(JobRecord(job, "0" * 32), Store(str(where / "out")))
        assert (plan.num_rows, plan.mapping.caption_column) == (1, "caption")


@pytest.mark.parametrize("is_old", [False, True])
def test_law_types_a_new_partition_is_refused_unless_the_plan_predates_partitions(
    is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(where: Path, number: int) -> None:
        (where / "in" / f"day={number}").mkdir()
        pq.write_table(pa.table({"url": [f"http://a.org/{number}"]}), where / "in" / f"day={number}" / "a.parquet")

    with folder() as where:
        if is_old:
            write(where, 1)
            with monkeypatch.context() as before:
                before.setattr("pairmill.pipeline.source.files.partitions_of", lambda uri: {})
                before.setattr(ColumnMapping, "to_json", _to_json_of_old)
                assert read_all(where).num_rows == 1
            write(where, 2)
            assert read_all(where).num_rows == 2
        else:
            pq.write_table(pa.table({"url": ["http://a.org/1"]}), where / "in" / "a.parquet")
            read_all(where)
            write(where, 2)
            with pytest.raises(PlanError, match=r"day=2/a.parquet: column 'day' is new"):
                read_all(where)


def _to_json_of_old(mapping: ColumnMapping, to_json: Any = ColumnMapping.to_json) -> dict[str, object]:
    return {name: value for name, value in to_json(mapping).items() if name != "has_partitions"}


CELLS = st.text("ab,;|\t \"'\r\né🙂", max_size=5)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4),
    delimiter=st.sampled_from(",;\t|"),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    has_last_end=st.booleans(),
)
@FEW
def test_law_types_a_text_list_has_the_rows_that_pandas_reads(
    rows: list[tuple[str, str]], delimiter: str, line_end: str, encoding: str, has_last_end: bool
) -> None:
    buffer = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if any("\n" in cell or "\r" in cell for row in rows for cell in row) else csv.QUOTE_MINIMAL
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerows([("url", "caption"), *((f"http://a.org/{url}", caption) for url, caption in rows)])
    text = buffer.getvalue() if has_last_end else buffer.getvalue().removesuffix(line_end)
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:
        assume(False)
    with folder() as where:
        (where / "in" / "a.csv").write_bytes(data)
        expected = pd.read_csv(
            io.BytesIO(data), sep=delimiter, dtype=str, keep_default_na=False, encoding=encoding, engine="c"
        )
        found = read_all(where, delimiter=delimiter, **({"encoding": "latin-1"} if encoding == "latin-1" else {}))
    assert found["url"].to_pylist() == expected["url"].tolist()
    assert found["caption"].to_pylist() == expected["caption"].tolist()


def test_law_types_a_long_line_ended_by_a_bare_carriage_return_affects_no_other_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pairmill.pipeline.source.text_file.MAX_RECORD_BYTES", 50)
    monkeypatch.setattr("pairmill.pipeline.source.text_file._BUFFER_BYTES", 7)
    lines = [f"http://a.org/{row}" + "x" * (200 if row == 2 else 0) for row in range(5)]
    for line_end in ("\r", "\n", "\r\n"):
        with folder() as where:
            (where / "in" / "a.txt").write_bytes(line_end.join(lines).encode())
            found = read_all(where)
        assert found["url"].to_pylist() == [None if row == 2 else line for row, line in enumerate(lines)]


def test_law_types_undeclared_latin_1_is_refused_by_name() -> None:
    with folder() as where:
        (where / "in" / "a.csv").write_bytes("url,caption\nhttp://a.org/1,é\n".encode("latin-1"))
        with pytest.raises(SourceError, match=r"a.csv: is not UTF-8"):
            read_all(where)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("no", "No", "NO", "yes", "on", "off", "y", "n", "Off", "12:30:00", "2026-01-01")),
        *(("true", True), ("False", False), ("TRUE", True), ("null", None), ("~", None), ("0b1", "0b1")),
        *(("0123", 123), ("-7", -7), ("1_000", 1000), ("0x1F", 31), ("0.28", 0.28), ("-1.5e-3", -0.0015)),
        *(("1.0e-05", 1e-5), (".5", 0.5), ("5.", 5.0), (".inf", math.inf), ("1.2.3", "1.2.3"), ("1e3", "1e3")),
    ],
)
def test_law_types_words_in_a_job_file_have_their_yaml_1_2_values(text: str, value: object) -> None:
    assert load_yaml(text) == value
    assert type(load_yaml(text)) is type(value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5))
def test_law_types_a_job_file_can_be_json_or_the_output_of_our_own_writer(value: object) -> None:
    assert load_yaml(yaml.safe_dump([value])) == [value]
    if json.dumps(value).isascii() and "\\ud" not in json.dumps(value) and "\\u" not in json.dumps(value):
        assert load_yaml(json.dumps([value])) == [value]


@pytest.mark.parametrize("setting", [False, True])
def test_law_types_the_resize_mode_no_needs_no_quotes(tmp_path: Path, setting: bool) -> None:
    values = "images: {resize_mode: no}\nrules: {caption_languages: [en, no], caption_drop_dates: yes}\n"
    (tmp_path / "job.yaml").write_text("config_version: 1" if setting else values)
    settings_ = ["images.resize_mode=no", "rules.caption_languages=[en, no]", "rules.caption_drop_dates=yes"]
    base = {"source.paths": ["in.csv"], "output": "out"}
    job = load_job(str(tmp_path / "job.yaml"), base, settings_ if setting else ())
    assert (job.images.resize_mode, job.rules.caption_languages) == ("no", ["en", "no"])
    assert job.rules.caption_drop_dates is True


def test_law_types_pictures_of_very_different_sizes_are_read_in_bounded_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor_module, "_BATCH_BYTES", 1 << 20)
    pictures = [b"a" * 100] * 500 + [b"b" * 400_000] * 10
    image = pa.array([{"bytes": picture, "path": None} for picture in pictures])
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": image, "text": ["t"] * 510}), path)
    sizes: list[int] = []
    take = Cursor._next_batch

    def spied(cursor: Cursor) -> pa.RecordBatch:
        batch = take(cursor)
        sizes.append(batch.num_rows * max(len(each["bytes"]) for each in batch.column(0).to_pylist()))
        return batch

    monkeypatch.setattr(Cursor, "_next_batch", spied)
    store = Store(str(tmp_path / "out"))
    cursor = Cursor(store, path, store.files.fingerprint(path))
    found = [row["bytes"] for start in (0, 255) for row in cursor.rows(start, 255)["image"].to_pylist()]
    cursor.close()
    assert found == pictures
    assert max(sizes) <= 1 << 20


def _shard_bytes(path: Path, lengths: list[int], shard_rows: int = 4_096) -> list[int]:
    """Total bytes of the pictures in each planned shard of a corpus that is one file."""
    with folder() as where:
        source = {"paths": [str(path)], "kind": "corpus"}
        job = BuildJob.model_validate(
            {"source": source, "output": str(where / "out"), "shard_rows": shard_rows, "models": [{"name": "tiny"}]}
        )
        shards = shards_from_table(make_plan(JobRecord(job, "job"), Store(job.output)).shards)
        assert sum(shard.num_rows for shard in shards) == len(lengths)
        assert all(0 < shard.num_rows <= shard_rows for shard in shards)
        return [sum(lengths[shard.first_row : shard.first_row + shard.num_rows]) for shard in shards]


def test_law_types_the_reported_row_group_is_planned_in_shards_of_about_a_gigabyte() -> None:
    lengths = [1_000] * 1_900 + [56_001_000] * 40
    found = _shard_bytes(CASES / "skewed_row_group.parquet", lengths)
    page = 1_121_814_126  # bytes of a page: Arrow wrote 20 of the 40 large pictures into each of two pages
    assert len(found) > 2 and max(found) <= page


@given(
    parts=st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0, 10, 1_000, 20_000])), min_size=1, max_size=5),
    group_rows=st.sampled_from([7, 1_000]),
    shard_rows=st.sampled_from([16, 4_096]),
    version=st.sampled_from(["1.0", "2.0"]),
)
@FEW
def test_law_types_shards_of_pictures_are_cut_by_bytes(
    parts: list[tuple[int, int]], group_rows: int, shard_rows: int, version: str
) -> None:
    lengths = [length for rows, length in parts for _ in range(rows)]
    pictures = [{"bytes": np.random.default_rng(n).bytes(length), "path": None} for n, length in enumerate(lengths)]
    with folder() as where, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairmill.pipeline.source.cursor._MAX_PICTURE_SHARD_BYTES", 100_000)
        patch.setattr("pairmill.pipeline.source.shard_ends._SMALL_SHARD_BYTES", 0)
        path = where / "a.parquet"
        table = pa.table({"image": pictures, "text": ["t"] * len(lengths)})
        options: dict[str, object] = {"data_page_version": version, "compression": "zstd", "write_batch_size": 1}
        pq.write_table(table, path, row_group_size=group_rows, use_dictionary=False, data_page_size=20_000, **options)
        assert max(_shard_bytes(path, lengths, shard_rows)) <= 50_000
