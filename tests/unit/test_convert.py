"""Tests that text formats become Parquet without losing a record or a byte."""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source import records, text_file
from pairmill.pipeline.source.columns import map_columns
from pairmill.pipeline.source.convert import convert, converted_name, inspect_text
from pairmill.pipeline.source.files import MALFORMED_COLUMN, SourceError, kind_of
from pairmill.schemas.job.source import SourceConfig


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("convert")


def converted(folder: Path, name: str, data: bytes, shard_rows: int = 2, **settings: str | None) -> pa.Table:
    """The table converted from an input file with this content."""
    config = SourceConfig.model_validate({"paths": ["-"], **settings})
    path = folder / name
    path.write_bytes(data)
    source = inspect_text(str(path), kind_of(name), Files(), config)
    facts = map_columns(config, [source], needs_license=False)
    store = Store(str(folder / "out"))
    target = converted_name(source, str(hash(data)), facts, shard_rows)
    convert(source, target, facts, shard_rows, store)
    return pq.ParquetFile(io.BytesIO(store.read(target))).read()


def column(table: pa.Table, name: str) -> list[Any]:
    return list(table[name].to_pylist())


def problems(table: pa.Table) -> list[str | None]:
    return column(table, MALFORMED_COLUMN)


FIELD = st.binary(max_size=12).filter(lambda field: b"\r" not in field)


@given(st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=8), st.sampled_from([",", "\t"]), st.booleans())
def test_csv_keeps_every_row_and_every_byte(
    scratch: Path, rows: Sequence[tuple[bytes, bytes, bytes]], delimiter: str, bom: bool
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([["url", "caption", "other"], *([field.decode("latin-1") for field in row] for row in rows)])
    data = (b"\xef\xbb\xbf" if bom else b"") + text.getvalue().encode("latin-1")
    table = converted(scratch, "a.csv" if delimiter == "," else "a.tsv", data, encoding="utf-8")
    assert problems(table) == [None] * len(rows)
    assert list(zip(column(table, "url"), column(table, "caption"), strict=True)) == [row[:2] for row in rows]
    assert column(table, "other") == [row[2].decode("utf-8", "replace") for row in rows]


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=10))
def test_unquoted_csv_becomes_one_row_per_line(scratch: Path, lines: list[bytes]) -> None:
    lines = [line.replace(b'"', b"") for line in lines]
    data = b"url,caption\n" + b"".join(line + b"\n" for line in lines)
    table = converted(scratch, "a.csv", data, encoding="utf-8")
    assert table.num_rows == sum(bool(piece) for line in lines for piece in line.split(b"\r"))


@given(st.binary(max_size=200))
def test_any_bytes_are_converted_without_a_crash(scratch: Path, garbage: bytes) -> None:
    for name, head in (
        *(("a.csv", b"url,caption\n"), ("a.tsv", b"url\tcaption\n"), ("a.txt", b"u\n")),
        *(("a.jsonl", b'{"url": "u"}\n'), ("a.json", b'{"url": "u"}\n')),
    ):
        converted(scratch, name, head + garbage, encoding="utf-8")


JSON = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)


@given(st.lists(st.fixed_dictionaries({"url": st.text(max_size=8) | st.none(), "more": JSON}), min_size=1, max_size=8))
def test_json_lines_keep_every_row(scratch: Path, rows: list[dict[str, object]]) -> None:
    table = converted(scratch, "a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    expected = [None if row["url"] is None else row["url"].encode("utf-8", "surrogatepass") for row in rows]
    assert column(table, "url") == expected
    for value, row in zip(column(table, "more"), rows, strict=True):
        assert value == (
            row["more"] if row["more"] is None or isinstance(row["more"], str) else json.dumps(row["more"])
        )


def test_json_numbers_stay_as_they_are_written(scratch: Path) -> None:
    numbers = [
        "0.12345678901234567890123",
        "1e400",
        "1E5",
        "-0",
        "1.10",
        "-1.50e-07",
        "18446744073709551616",
        "9" * 5_000,
    ]
    row = '{{"url": "u", "caption": {0}, "x": {0}, "list": [{0}, "é", null], "deep": {{"a": [true, {{"b": {0}}}]}}}}\n'
    table = converted(scratch, "a.jsonl", "".join(map(row.format, numbers)).encode())
    assert column(table, "caption") == [number.encode() for number in numbers]
    assert column(table, "x") == numbers
    assert column(table, "list") == [f'[{number}, "é", null]' for number in numbers]
    assert column(table, "deep") == [f'{{"a": [true, {{"b": {number}}}]}}' for number in numbers]


def test_if_a_json_object_has_a_key_twice_the_last_value_counts(scratch: Path) -> None:
    assert column(converted(scratch, "a.jsonl", b'{"url": "u", "x": 1.0, "x": 2.0}'), "x") == ["2.0"]


def test_json_lines_keep_raw_bytes(scratch: Path) -> None:
    table = converted(
        scratch, "a.jsonl", b'\xef\xbb\xbf{"url": "\xff\\u00e9", "caption": "\\ud83d", "x\xff": "\xfe"}\n'
    )
    assert column(table, "url") == [b"\xff\xc3\xa9"]
    assert column(table, "caption") == ["\ud83d".encode("utf-8", "surrogatepass")]
    assert column(table, "x�") == ["�"]


def test_json_caption_lists_stay_lists_and_other_lists_become_text(scratch: Path) -> None:
    rows = [{"url": "u", "caption": ["a", None, 3], "tags": ["x"]}, {"url": "v", "caption": "b"}, {"url": "w"}]
    table = converted(scratch, "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert column(table, "caption") == [[b"a", None, b"3"], [b"b"], None]
    assert column(table, "tags") == ['["x"]', None, None]


def test_a_line_that_is_not_a_json_object_is_a_malformed_row(scratch: Path) -> None:
    bad = [b"{", b"[]", b"3", b"null", b"[" * 100_000, b"\x00"]
    table = converted(scratch, "a.jsonl", b"\n".join([b'{"url": "u"}', b"  ", *bad]))
    found = problems(table)
    assert found[0] is None
    assert len(found) == 1 + len(bad)
    assert all(problem and problem.startswith("not a JSON object") and len(problem) <= 200 for problem in found[1:])
    assert found[1] == "not a JSON object: {"


@pytest.mark.parametrize("depth", [10, 300, 450, 900, 990, 2000])
def test_json_of_any_depth_becomes_a_row(scratch: Path, depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    table = converted(scratch, "a.jsonl", b'{"url": "u", "deep": 1}\n{"url": "v", "deep": ' + deep + b"}\n")
    assert table.num_rows == 2
    assert (problems(table)[1] is None) == (column(table, "url")[1] == b"v")


def test_a_csv_row_with_too_many_or_too_few_fields_is_malformed(scratch: Path) -> None:
    table = converted(scratch, "a.csv", b"url,caption\r\nu,c\r\n\r\nu,c,d\r\nalone\r\n,\r\n")
    assert problems(table) == [None, "3 fields, not 2: u,c,d", "1 field, not 2: alone", None]
    assert column(table, "url") == [b"u", None, None, b""]


def test_a_stray_quote_costs_only_one_row(scratch: Path) -> None:
    table = converted(scratch, "a.csv", b'url,caption\nu1,"open\nu2,c2\nu3,a "quoted" word\nu4,c4\n')
    assert column(table, "url") == [None, b"u2", b"u3", b"u4"]
    assert column(table, "caption") == [None, b"c2", b'a "quoted" word', b"c4"]


def test_in_tsv_a_stray_quote_is_text(scratch: Path) -> None:
    table = converted(scratch, "a.tsv", b'caption\turl\n"Hi" she said\tu1\n"open\tu2\n"a\nb"\tu3\n')
    assert column(table, "caption") == [b'"Hi" she said', b'"open', b"a\nb"]


CAPTIONS = st.lists(st.text('ab" ', max_size=6), min_size=1, max_size=8)


@given(captions=CAPTIONS, url_first=st.booleans())
@example(captions=['"open', "between", 'close"'], url_first=False)
@example(captions=['"open', "between", 'close"'], url_first=True)
def test_every_line_of_an_unquoted_tsv_is_a_row_even_if_its_caption_contains_quotes(
    scratch: Path, captions: list[str], url_first: bool
) -> None:
    urls = [f"http://a.org/{number}" for number in range(len(captions))]
    names, rows = ["caption", "url"], list(zip(captions, urls, strict=True))
    lines = ["\t".join(row[::-1] if url_first else row) for row in [names, *rows]]
    table = converted(scratch, "a.tsv", "\n".join(lines).encode())
    assert column(table, "url") == [url.encode() for url in urls]
    found = [caption.decode() for caption in column(table, "caption")]
    is_quoted = [len(text) > 1 and text[0] == text[-1] == '"' for text in captions]
    assert [text for text, quoted in zip(found, is_quoted, strict=True) if not quoted] == [
        text for text, quoted in zip(captions, is_quoted, strict=True) if not quoted
    ]


@given(captions=st.lists(st.text('ab"\t\n', max_size=8), max_size=6), url_first=st.booleans())
@example(captions=["\n\ta", "\n\tb"], url_first=True)
def test_line_breaks_and_tabs_in_quotes_are_kept_in_a_tsv(scratch: Path, captions: list[str], url_first: bool) -> None:
    rows = [[text, f"http://a.org/{number}"] for number, text in enumerate(captions)]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(
        row[::-1] if url_first else row for row in [["caption", "url"], *rows]
    )
    table = converted(scratch, "a.tsv", text.getvalue().encode())
    assert [list(row) for row in zip(column(table, "caption"), column(table, "url"), strict=True)] == [
        [each.encode() for each in row] for row in rows
    ]


def test_a_record_above_the_limit_is_malformed_and_reading_continues(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "MAX_RECORD_BYTES", 50)
    for name, head, lines in (
        ("a.csv", b"url,caption\n", [b"u," + b"x" * 3000, b'u,"' + b"y\n" * 60 + b'"', b"u2,c2"]),
        ("a.jsonl", b"", [b'{"url": "' + b"x" * 3000 + b'"}', b'{"url": "u2"}']),
        ("a.txt", b"", [b"x" * 3000, b"u2"]),
        ("a.json", b"[", [b'{"url": "' + b"x" * 3000 + b'"},', b'{"url": "u2"}]']),
    ):
        table = converted(scratch, name, head + b"\n".join(lines) + b"\n")
        found = problems(table)
        assert found[0] is not None
        assert found[0].startswith("longer than 50 bytes: ")
        assert found[-1] is None
        assert column(table, "url")[-1] == b"u2"


def test_a_field_of_several_megabytes_is_read(scratch: Path) -> None:
    table = converted(scratch, "a.csv", b'url,caption\nu,"' + (b"x" * 1_999 + b"\n") * 1_000 + b'"\n')
    assert len(column(table, "caption")[0]) == 2_000_000


def test_a_text_file_has_one_url_per_line(scratch: Path) -> None:
    table = converted(scratch, "a.txt", b"\xef\xbb\xbfhttp://a\r\n\n  http://b \nhttp://c")
    assert column(table, "url") == [b"http://a", b"http://b", b"http://c"]
    assert table.column_names == ["url", MALFORMED_COLUMN]


def test_gzip_is_decompressed_and_a_truncated_file_raises_an_error_and_leaves_no_files(tmp_path: Path) -> None:
    data = gzip.compress(b"url,caption\n" + b"".join(b"u%d,c\n" % number for number in range(100_000)))
    assert converted(tmp_path, "whole.csv.GZ", data, shard_rows=4096).num_rows == 100_000
    before = sorted(path.name for path in tmp_path.rglob("*.parquet"))
    with pytest.raises(SourceError, match=r"cut\.csv\.gz: cannot be fully decompressed"):
        converted(tmp_path, "cut.csv.gz", data[:-1000])
    with pytest.raises(SourceError, match=r"no\.csv\.gz: cannot be fully decompressed"):
        converted(tmp_path, "no.csv.gz", b"url,caption\nu,c\n")
    assert sorted(path.name for path in tmp_path.rglob("*.parquet")) == before
    assert list((tmp_path / "out" / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b'"url,caption\nu,c\n', "cannot read the column names on the first line"),
        ("a.csv", b"adress,words\nu,c\n", r"it has 'adress', 'words'.*Are the column names on the first line"),
        ("a.csv", b"a," * 2000 + b"url\n", "2001 columns, but at most 1000"),
        ("a.csv", b"url,a,a_4,a\n", "share a name"),
        ("a.csv", b"url,__pairmill_malformed\nu,x\n", "is reserved"),
        ("a.jsonl", b'[\n{"url": "u"}\n]'.replace(b'{"url": "u"}', b"1"), "expected one per line"),
        ("a.jsonl", json.dumps({str(n): n for n in range(1001)}).encode(), "more than 1000 distinct keys"),
    ],
)
def test_a_file_that_cannot_be_converted_raises_an_error_that_names_it(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(SourceError, match=rf"(?s)a\.\w+: .*{message}"):
        converted(tmp_path, name, data)


def test_columns_with_empty_or_repeated_names_are_kept(scratch: Path) -> None:
    table = converted(scratch, "a.csv", b",url,caption,url,\n0,u,c,v,x\n")
    assert table.column_names == ["column_1", "url", "caption", "url_4", "column_5", MALFORMED_COLUMN]


def test_columns_are_strings_even_if_a_shard_has_only_nulls(scratch: Path) -> None:
    table = converted(scratch, "a.jsonl", b'{"url": "u"}\n{"url": "v"}\n{"url": "w", "late": 1}\n', shard_rows=1)
    assert table.schema.field("late").type == pa.string()


def test_row_groups_contain_whole_shards(tmp_path: Path) -> None:
    converted(tmp_path, "a.txt", b"u\n" * 5000, shard_rows=600)
    (path,) = tmp_path.glob("out/input/*.parquet")
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [1200] * 4 + [200]


def test_a_file_that_another_driver_has_already_converted_is_used(tmp_path: Path) -> None:
    first = converted(tmp_path, "a.txt", b"u\n")
    assert converted(tmp_path, "a.txt", b"u\n").equals(first)
    assert len(list(tmp_path.glob("out/input/*.parquet"))) == 1


def test_hostile_quotes_do_not_cause_quadratic_reading() -> None:
    """Each line opens a quote, so every record would extend to the end of the file."""
    num_lines, taken = 3_000, 0

    def lines() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(num_lines):
            taken += 1
            yield b'a","\n'

    physical = records._PhysicalLines.__next__
    readings = 0

    def counted(self: records._PhysicalLines) -> str:
        nonlocal readings
        readings += 1
        return physical(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records._PhysicalLines, "__next__", counted)
        found = list(records.csv_records(lines(), ",", 2))
    assert len(found) == taken == num_lines
    assert all(record.problem for record in found)
    assert readings < 10 * num_lines
