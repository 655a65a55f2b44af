"""Tests delimiters, encodings and JSON arrays against pandas, Polars and Python's own readers."""

import bz2
import codecs
import csv
import encodings
import gzip
import io
import json
import lzma
import pkgutil
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather, orc

from pairmill.jobs.job_file import fingerprint
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source import text_file
from pairmill.pipeline.source.convert import inspect_text
from pairmill.pipeline.source.describe import describe_plan
from pairmill.pipeline.source.files import SourceError, kind_of
from pairmill.pipeline.source.json_array import split_json
from pairmill.pipeline.source.plan import load_plan, make_plan
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.jobs import BuildJob, fingerprint_fields
from pairmill.schemas.manifest import shards_from_table
from pairmill.schemas.record import JobRecord
from tests.unit.test_convert import column, converted, problems

DELIMITERS = [",", ";", "\t", "|"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


def csv_text(rows: Sequence[Sequence[str]], delimiter: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([["url", "caption", "other"], *rows])
    return text.getvalue()


def detected(folder: Path, name: str, text: str, **settings: str) -> str | None:
    (folder / name).write_text(text, newline="")
    config = SourceConfig.model_validate({"paths": ["-"], **settings})
    return inspect_text(str(folder / name), kind_of(name), Files(), config).delimiter


def rows_of(table: pa.Table) -> list[list[str]]:
    columns = [[value.decode() for value in column(table, name)] for name in ("url", "caption")]
    return [list(row) for row in zip(*columns, column(table, "other"), strict=True)]


FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8)
FIELDS = st.text(st.sampled_from([*"ab ,;|\t\n\"'é"]), max_size=8) | FIELD
ROWS = st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=8)


@given(ROWS, st.sampled_from(DELIMITERS), st.sampled_from(["a.csv", "a.tsv"]))
def test_any_delimiter_is_detected_and_rows_equal_those_of_csv_pandas_and_polars(
    scratch: Path, rows: list[tuple[str, str, str]], delimiter: str, name: str
) -> None:
    text = csv_text(rows, delimiter)
    assert detected(scratch, name, text) == delimiter
    found = rows_of(converted(scratch, name, text.encode(), encoding="utf-8"))
    assert found == [list(row) for row in rows]
    assert found == list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))[1:]
    frame = pd.read_csv(io.StringIO(text), sep=delimiter, dtype=str, keep_default_na=False, skip_blank_lines=False)
    assert found == frame.values.tolist()
    polars = pl.read_csv(text.encode(), separator=delimiter, infer_schema=False, empty_string_is_null=False)
    assert found == [list(row) for row in polars.rows()]


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("url\nhttp://e.org/a;b|c\n", {}, ","),  # a single column with a known name
        ("url,caption\n" + "u;c\n" * 9, {}, ","),  # the header determines the delimiter, and the rows are malformed
        ("id;url,thumb;caption\n", {}, ","),
        ("adresse;mots\nu;c\n", {}, ","),  # no known column name, so an error will list the columns
        ("adresse;mots\nu;c\n", {"url_column": "adresse"}, ";"),
        ("adresse;mots\nu;c\n", {"delimiter": ";"}, ";"),
        ("url;caption\nu;c\n", {"delimiter": "|"}, "|"),
        ("url|caption\n" + "u|a|b\n" * 6 + "u|c\n" * 3, {}, ","),  # most records have a different number of fields
        ("url|caption\n" + "u|a|b\n" * 3 + "u|c\n" * 6, {}, "|"),
        ("mots;url\n", {"kind": "corpus"}, ","),  # a corpus needs a caption column
        ("texts;adresse\n", {"kind": "corpus"}, ";"),
        ('url|caption\nu|"' + "a line\n" * 200 + '"\n', {}, "|"),  # the sample ends within a record
        ("Image Link\tAlt-Text\nu\tc\n", {}, "\t"),
    ],
)
def test_a_delimiter_counts_only_if_the_header_and_most_records_fit(
    tmp_path: Path, text: str, settings: dict[str, object], expected: str
) -> None:
    assert detected(tmp_path, "a.csv", text, **settings) == expected


def test_prose_with_many_semicolons_is_not_split(tmp_path: Path) -> None:
    rows = "".join(f'http://e.org/{n},"one; two; three; four"\n' for n in range(50))
    assert detected(tmp_path, "a.csv", f"url,caption\n{rows}") == ","


UNICODE = ["utf-8", "utf-16", "utf-16-le", "utf-32", "gb18030"]
ENCODINGS = ["latin-1", "cp1252", "big5", "gbk", "koi8-r", *UNICODE]


def texts(encoding: str) -> st.SearchStrategy[str]:
    """Strings that the encoding can represent. Hypothesis's `codec` option takes a second per encoding to find them."""
    if encoding in UNICODE:
        return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8)
    return st.binary(max_size=16).map(lambda raw: raw.decode(encoding, "ignore").translate({0: None, 13: None}))


@given(st.data(), st.sampled_from(ENCODINGS), st.sampled_from(["a.csv", "a.tsv", "a.csv.gz"]))
def test_a_declared_encoding_yields_the_same_rows_as_utf_8_and_pandas(
    scratch: Path, data: st.DataObject, encoding: str, name: str
) -> None:
    field = texts(encoding)
    rows = data.draw(st.lists(st.tuples(field, field, field), max_size=6))
    text = csv_text(rows, "\t" if name == "a.tsv" else ",")
    raw, plain = text.encode(encoding), text.encode()
    if name.endswith(".gz"):
        raw, plain = gzip.compress(raw), gzip.compress(plain)
    found = converted(scratch, name, raw, encoding=encoding)
    assert problems(found) == [None] * len(rows)
    assert found.equals(converted(scratch, name, plain, encoding="utf-8"))
    frame = pd.read_csv(
        io.BytesIO(text.encode(encoding)), encoding=encoding, dtype=str, keep_default_na=False, skip_blank_lines=False,
        sep="\t" if name == "a.tsv" else ",",
    )  # fmt: skip
    assert rows_of(found) == frame.values.tolist()


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize(
    ("name", "declared"),
    [("a.csv", None), ("a.csv", "latin-1"), ("a.jsonl", "latin-1"), ("a.json", None), ("a.txt", "latin-1")],
)
def test_a_byte_order_mark_overrides_the_declared_encoding(
    tmp_path: Path, encoding: str, declared: str | None, name: str
) -> None:
    texts = {"a.csv": "url;caption\nü;ż\n", "a.json": '[{"url": "ü", "caption": "ż"}]', "a.txt": "ü\n"}
    text = texts.get(name, '{"url": "ü", "caption": "ż"}\n')
    data = text.encode(encoding) if encoding[-2:] not in ("le", "be") else f"\ufeff{text}".encode(encoding)
    table = converted(tmp_path, name, data, encoding=declared)
    assert column(table, "url") == ["ü".encode()]
    assert name == "a.txt" or column(table, "caption") == ["ż".encode()]


LATIN = "url,caption\n" + "".join(f"http://e.org/{n},un café crème\n" for n in range(30))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", LATIN.encode("latin-1")),
        ("a.csv", LATIN.replace("café", "“café”").encode("cp1252")),
        ("a.csv", "url,caption\nu,café\n".encode("latin-1")),
        ("a.csv", ("url,caption\n" + "u,plain\n" * 5_000 + "u,café\n" * 50).encode("latin-1")),
        ("a.csv.gz", gzip.compress(LATIN.encode("latin-1"), mtime=0)),  # mtime=0 keeps the time out of the test's name
        ("a.jsonl", ('{"url": "u", "caption": "café"}\n' * 9).encode("latin-1")),
        ("a.json", ("[" + ", ".join(['{"url": "u", "caption": "café"}'] * 9) + "]").encode("latin-1")),
        ("a.txt", "http://e.org/é\nhttp://e.org/è\n".encode("latin-1")),
        ("a.csv", LATIN.encode("shift_jis", "ignore").replace(b"caf", "喫茶".encode("shift_jis"))),
    ],
)
def test_a_file_in_another_encoding_is_refused_with_the_setting_to_use(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(SourceError, match=rf"{name}: is not UTF-8 .*Set source\.encoding to .*latin-1"):
        converted(tmp_path, name, data)
    as_latin = converted(tmp_path, name, data, encoding="latin-1")
    assert converted(tmp_path, name, data, encoding="utf-8").num_rows == as_latin.num_rows > 0


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt"])
@pytest.mark.parametrize("codec", ["zstd", "bz2", "xz", "lz4", "zip", "parquet", "orc", "arrow"])
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_a_file_that_is_not_text_is_refused_with_its_actual_format(
    tmp_path: Path, name: str, codec: str, is_gzipped: bool
) -> None:
    """Following the advice for other encodings would turn the file into rows of garbage."""
    rows = pa.table({"url": ["http://a.invalid/1.jpg"] * 500})
    packed, text = io.BytesIO(), rows["url"][0].as_py().encode() * 500
    match codec:
        case "parquet":
            pq.write_table(rows, packed)
        case "orc":
            orc.write_table(rows, packed)
        case "arrow":
            feather.write_feather(rows, packed)
        case "zip":
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr("a.csv", text)
        case "xz":
            packed.write(lzma.compress(text))
        case _:
            packed.write(bz2.compress(text) if codec == "bz2" else bytes(pa.compress(text, codec=codec, asbytes=True)))
    data = packed.getvalue()
    (tmp_path / name).write_bytes(gzip.compress(data) if is_gzipped else data)
    said = {"zstd": "with Zstandard", "bz2": "with bzip2", "xz": "with xz", "lz4": "with LZ4", "zip": "a ZIP"}
    said |= {"parquet": "a Parquet", "orc": "an ORC", "arrow": "an Arrow"}
    with pytest.raises(SourceError, match=f"{'its content ' if is_gzipped else ''}is (compressed )?{said[codec]}"):
        inspect_text(str(tmp_path / name), kind_of(name), Files(), SourceConfig(paths=[str(tmp_path)]))


def test_a_stray_nul_costs_one_url_and_is_not_taken_for_utf_16(tmp_path: Path) -> None:
    assert column(converted(tmp_path, "a.txt", b"http://a/\0\nhttp://b\n"), "url") == [b"http://a/\0", b"http://b"]
    with pytest.raises(SourceError, match=r"a column name on the first line contains a NUL byte; remove it"):
        converted(tmp_path, "a.csv", b"url,caption\0\nu,c\n")


@pytest.mark.parametrize(("name", "line"), [("a.txt", b"http://a\n"), ("a.jsonl", b'{"url": "http://a"}\n')])
def test_lists_that_were_joined_may_have_byte_order_marks_between_them(tmp_path: Path, name: str, line: bytes) -> None:
    assert column(converted(tmp_path, name, (codecs.BOM_UTF8 + line) * 3), "url") == [b"http://a"] * 3


def test_utf_16_without_a_mark_is_refused_with_the_setting_to_use(tmp_path: Path) -> None:
    data = "url,caption\nu,c\n".encode("utf-16-le")
    with pytest.raises(SourceError, match=r"NUL bytes.*source\.encoding to utf-16-le or utf-16-be"):
        converted(tmp_path, "a.csv", data)
    assert column(converted(tmp_path, "a.csv", data, encoding="utf-16-le"), "caption") == [b"c"]


def test_a_large_file_in_another_encoding_is_refused_before_its_end(tmp_path: Path) -> None:
    read = 0

    def split(file: io.BufferedReader) -> Any:
        nonlocal read
        for line in file:
            read += 1
            yield line

    (tmp_path / "a.txt").write_bytes(b"\xe9\n" * 50_000)
    with (
        pytest.raises(SourceError, match="is not UTF-8"),
        text_file.lines_of(str(tmp_path / "a.txt"), Files(), None, split) as lines,
    ):
        list(lines)
    assert read == 10_000


@given(st.lists(st.sampled_from(["plain", "café", "broken"]), min_size=4, max_size=40))
def test_a_few_broken_rows_in_a_utf_8_list_affect_no_other_rows(scratch: Path, captions: list[str]) -> None:
    """This holds if only one row is broken, or if broken rows do not outnumber valid rows that are not ASCII."""
    broken = captions.count("broken")
    raw = {"plain": b"plain", "café": "café".encode(), "broken": b"caf\xe9"}
    data = b"url,caption\n" + b"".join(b"u%d,%s\n" % (n, raw[caption]) for n, caption in enumerate(captions))
    if broken > 1 and broken > captions.count("café"):
        with pytest.raises(SourceError, match=r"source\.encoding"):
            converted(scratch, "a.csv", data)
        return
    table = converted(scratch, "a.csv", data)
    assert column(table, "caption") == [raw[caption] for caption in captions]


def test_a_broken_row_is_caption_invalid_and_the_others_are_ok(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"url;caption\n" + b"http://e.org/%d;fine\n" * 5 % (1, 2, 3, 4, 5))
    with (tmp_path / "a.csv").open("ab") as file:
        file.write(b"http://e.org/6;caf\xe9\nhttp://e.org/7;one;more\n")
    job = BuildJob.model_validate({"source": {"paths": [str(tmp_path / "a.csv")]}, "output": str(tmp_path / "out")})
    store = Store(job.output)
    plan = make_plan(JobRecord(job, "job"), store)
    reader = ShardReader(store, plan.mapping)
    (table,) = [reader.read(shard) for shard in shards_from_table(plan.shards)]
    reader.close()
    assert table["status"].to_pylist() == ["ok"] * 5 + ["caption_invalid", "row_malformed"]
    assert "a.csv: fields separated by ';'" in describe_plan(load_plan(store), job).splitlines()


def test_bytes_that_are_invalid_in_the_declared_encoding_are_detected(tmp_path: Path) -> None:
    """0x81 is invalid in cp1252, and a lone surrogate is invalid in UTF-16."""
    table = converted(tmp_path, "a.csv", b"url,caption\nu,caf\xe9\nv,\x81x\n", encoding="cp1252")
    assert column(table, "caption") == ["café".encode(), b"\xffx"]
    half = "url,caption\nu,a\ud83d!\n".encode("utf-16-le", "surrogatepass")
    assert column(converted(tmp_path, "a.csv", half, encoding="utf-16-le"), "caption") == [b"a\xff!"]
    assert converted(tmp_path, "a.csv", half[:-1], encoding="utf-16-le").num_rows == 1


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # unicode_escape
def test_an_encoding_reads_any_bytes_or_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(bytes(range(256)) * 9)
    refused = set()
    for name in [*(module.name for module in pkgutil.iter_modules(encodings.__path__)), "no-such", ""]:
        try:
            encoding = SourceConfig.model_validate({"paths": ["-"], "encoding": name}).encoding
        except ValueError as error:
            assert "unknown text encoding" in str(error)
            refused.add(name)
        else:
            with text_file.lines_of(str(tmp_path / "a.csv"), Files(), encoding) as lines:
                assert b"".join(lines)
    assert {"base64_codec", "rot_13", "hex_codec", "idna", "punycode", "undefined", "no-such", ""} <= refused
    assert not {"ascii", "cp1252", "utf_7", "utf_16", "utf_32", "shift_jis", "gb18030", "iso2022_jp"} & refused


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_without_a_byte_order_mark_the_encoding_is_little_endian(tmp_path: Path, encoding: str) -> None:
    data = "url,caption\nü,ż\n".encode(f"{encoding}-le")
    assert column(converted(tmp_path, "a.csv", data, encoding=encoding), "caption") == ["ż".encode()]


@pytest.mark.parametrize("value", ["", ";;", "a", "é", '"', "\n", "\r"])
def test_an_invalid_delimiter_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="one ASCII character"):
        SourceConfig.model_validate({"paths": ["-"], "delimiter": value})


@pytest.mark.parametrize(("value", "meant"), [("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), ("|", "|"), ("~", "~")])
def test_a_tab_may_be_spelled_out(value: str, meant: str) -> None:
    assert SourceConfig.model_validate({"paths": ["-"], "delimiter": value}).delimiter == meant


def test_encoding_and_delimiter_affect_the_fingerprint_only_if_set() -> None:
    def job(**source: str) -> BuildJob:
        return BuildJob.model_validate({"source": {"paths": ["a.csv"], **source}, "output": "out"})

    assert fingerprint_fields(job(), with_defaults=False) == {}
    prints = {fingerprint(each) for each in (job(), job(encoding="latin-1"), job(delimiter=";"))}
    assert len(prints) == 3
    assert fingerprint(job(encoding="latin1")) == fingerprint(job(encoding="ISO-8859-1"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.fixed_dictionaries({"url": st.text(max_size=6), "more": JSON}), max_size=6)


@given(OBJECTS, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 40), st.text(" \n\r\t", max_size=3))
def test_an_array_yields_the_same_rows_as_json_lines(
    scratch: Path, rows: list[dict[str, object]], indent: int | None, ascii_only: bool, buffer_bytes: int, blank: str
) -> None:
    """Any whitespace in the array, and any chunk size of the reader, gives the same rows."""
    rows = [{"url": "first"}, *rows]
    text = blank + json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + blank
    lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_file, "_BUFFER_BYTES", buffer_bytes)
        found = converted(scratch, "a.json", text.encode("utf-8", "surrogatepass"), encoding="utf-8")
    data = lines.encode("utf-8", "surrogatepass")
    for name in ("a.jsonl", "a.json"):  # a .json file can contain JSON lines too
        assert found.equals(converted(scratch, name, data, encoding="utf-8"))


def buffered(data: bytes, buffer_bytes: int) -> Any:
    return io.BufferedReader(io.BytesIO(data), buffer_bytes)


@given(st.lists(JSON, max_size=6), st.integers(1, 20))
def test_the_elements_equal_those_of_the_json_module(values: list[Any], buffer_bytes: int) -> None:
    data = json.dumps(values).encode()
    pieces = split_json("a.json", buffered(data, buffer_bytes))
    assert [json.loads(piece) for piece in pieces] == json.loads(data)


@given(st.text('[]{}",\\ a', max_size=12).map(str.encode) | st.binary(max_size=12), st.integers(1, 5))
def test_no_array_crashes_the_reader(garbage: bytes, buffer_bytes: int) -> None:
    try:
        pieces = list(split_json("a.json", buffered(b"[" + garbage, buffer_bytes)))
    except SourceError:
        with pytest.raises(ValueError):
            json.loads((b"[" + garbage).decode("utf-8", "surrogateescape"))  # what is refused is not valid JSON
        return
    assert all(piece.strip() for piece in pieces)


def test_a_broken_element_affects_only_its_row(tmp_path: Path) -> None:
    data = b'[{"url": "u1"}, {"url": nonsense}, 7, {"url": "\xff"}, {"url": "u,]}\\"5"}}, {"url": "u6"},]'
    table = converted(tmp_path, "a.json", data, encoding="utf-8")
    assert column(table, "url") == [b"u1", None, None, b"\xff", None, b"u6"]
    assert [problem and problem.partition(":")[0] for problem in problems(table)] == [
        *(None, "not a JSON object", "not a JSON object"),
        *(None, "not a JSON object", None),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"url": "u"}, {"url": "v', "does not end"),
        (b'[{"url": "u"}', "does not end"),
        (b'[{"url": "u"}]\n[{"url": "v"}]', "there is text after the JSON array"),
        (b"[1, 2]", "has no JSON objects"),
        (b'{\n "url": "u"\n}\n', "has no JSON objects .*; expected one per line, or an array"),
        (b'{"url": {"0": "u", "1": "v"}, "text": {"0": "a", "1": "b"}}', "with a whole table"),
        (b'{"url": {"x": "u", "y": "v"}, "text": {"x": "a", "y": "b"}}', "with a whole table"),
        (b'{"url": ["u", "v"], "text": ["a", "b"]}', "expected one object per row.*orient='records'"),
        (b'[{"url": ["u", "v"]}]', "expected one object per row"),
    ],
)
def test_json_that_is_neither_lines_nor_an_array_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=rf"a\.json: .*{message}"):
        converted(tmp_path, "a.json", data)


@pytest.mark.parametrize("row", ['{"url": "u", "text": ["a", "b"]}', '{"url": "u", "tags": {}}', '{"url": null}', "{}"])
def test_a_single_row_is_not_taken_for_columns(tmp_path: Path, row: str) -> None:
    assert converted(tmp_path, "a.json", b'{"url": "u"}\n' + row.encode()).num_rows == 2
    if row != "{}":
        assert converted(tmp_path, "b.json", row.encode()).num_rows == 1


@pytest.mark.parametrize("row", ['{"image": {"path": "a.jpg"}, "text": {"path": "a.txt"}}', '{"text": ["a", "b"]}'])
def test_a_single_row_of_a_corpus_is_not_taken_for_columns(tmp_path: Path, row: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(row)
    config = SourceConfig(paths=["-"], kind="corpus")
    assert inspect_text(str(path), "json", Files(), config).num_rows == 1


@pytest.mark.parametrize("max_bytes", [text_file.MAX_RECORD_BYTES, 20])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 1_001])
@pytest.mark.parametrize("orient", ["columns", "index", "split", "table", "values", "records"])
def test_what_pandas_writes_is_read_as_it_was_or_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orient: Any, num_rows: int, max_bytes: int
) -> None:
    """Smaller limits stand for larger files."""
    monkeypatch.setattr(text_file, "MAX_RECORD_BYTES", max_bytes)
    frame = pd.DataFrame({"url": ["u"] * num_rows, "text": ["a"] * num_rows})
    for data in (frame, frame[["url"]]):
        text = data.to_json(orient=orient)
        if orient == "records":
            if max_bytes > 1_000:
                assert converted(tmp_path, "a.json", text.encode()).num_rows == num_rows
            continue
        with pytest.raises(SourceError, match=r"a\.json: .*orient='records', lines=True"):
            converted(tmp_path, "a.json", text.encode())


def test_a_huge_array_is_read_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of 2.6 MB, read in pieces of 16 kB: small elements, one of 640 kB, and a string that never ends."""
    monkeypatch.setattr(text_file, "MAX_RECORD_BYTES", 1 << 16)

    class Generated(io.RawIOBase):
        def __init__(self) -> None:
            small = b'{"url": "http://e.org/picture.jpg", "caption": "a red circle"},' * 1_000
            self.parts = iter([b"[", *[small] * 10, b"[", *[small] * 10, b"1],", b'"', *[b"x" * 65_536] * 20])
            self.ready = b""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self.ready = self.ready or next(self.parts, b"")
            count = min(len(buffer), len(self.ready))
            buffer[:count], self.ready = self.ready[:count], self.ready[count:]
            return count

    count = longest = 0
    tracemalloc.start()
    with pytest.raises(SourceError, match="does not end"):
        for piece in split_json("a.json", io.BufferedReader(Generated(), 1 << 14)):
            count += 1
            longest = max(longest, len(piece))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (count, longest) == (10_001, (1 << 16) + 1)
    assert peak < 1 << 19
