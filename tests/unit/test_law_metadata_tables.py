"""Invariant: a picture with a row in a metadata table gets the text that Hugging Face's `imagefolder` gives it.

The oracle is `datasets.load_dataset("imagefolder", data_dir=...)`, over generated folders.
"""

import csv
import gc
import io
import json
import math
import tempfile
import warnings
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.corpus import metadata_table
from pairmill.pipeline.source.corpus.discover import Corpus
from pairmill.pipeline.source.corpus.index import IndexRow
from pairmill.pipeline.source.corpus.sidecar import TextUse
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.plan import make_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.pipeline.source.rows import ShardReader
from pairmill.pipeline.source.types import exact_times
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import shards_from_table
from pairmill.schemas.passed_over import PassedOver, Tally
from pairmill.schemas.record import JobRecord

TEXTS = ["a dog", 'a "red" dog, running', "ein Hündchen 犬", "two\nlines", " blank ends ", "it's; a | tab\there", None]

REPLACEMENT = "\ufffd"

Row = dict[str, object]


def indexed(root: Path, tally: Tally | None = None, **config: Any) -> dict[str, list[IndexRow]]:
    """The rows of each planned folder, relative to `root`."""
    corpus = Corpus(SourceConfig(paths=[str(root)], kind="corpus", **config), Files())
    tally = Tally() if tally is None else tally
    rows = {}
    found = corpus.inputs("/nowhere")
    tally.passed_over.update(found.counts())
    tally.seen += sum(found.counts().values())
    for folder in found.files:
        rows[folder.removeprefix(str(root))] = list(corpus._rows(folder, tally, TextUse()))
    assert tally.holds()
    return rows


def write(path: Path, rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: pa.array([row.get(name) for row in rows]) for name in names}), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    Image.new("RGB", (1, 1)).save(data, "PNG")
    path.write_bytes(data.getvalue())


PLACES = ["", "a/", "a/b/", "c d/"]
trees = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["0.png", "1.png", "ü 2.png"]), st.sampled_from(TEXTS)),
    max_size=8,
    unique_by=lambda row: row[:2],
)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves the tables open
@settings(max_examples=4, deadline=None)
@given(trees, st.sampled_from([".csv", ".jsonl", ".parquet"]), st.sets(st.sampled_from(PLACES), min_size=1))
@example([("a/b/", "0.png", TEXTS[1]), ("", "1.png", TEXTS[0]), ("a/", "0.png", None)], ".csv", {"", "a/"})
def test_a_picture_gets_the_text_that_imagefolder_gives_it(
    tree: list[tuple[str, str, str | None]], ending: str, with_table: set[str]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "in"
        tables: dict[str, list[Row]] = {place: [] for place in with_table}
        tree += [(place, "x.png", "some text, so that datasets infers the type") for place in with_table]
        for place, file, text in tree:
            picture(root / place / file)
            table = max((each for each in with_table if place.startswith(each)), key=len, default=None)
            if table is not None:
                tables[table].append({"file_name": f"{place}{file}".removeprefix(table), "text": text})
        for place, rows in tables.items():
            write(root / place / f"metadata{ending}", rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # datasets leaves the tables open until they are collected
            found = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=f"{name}/cache", split="train")
            gc.collect()
        found = found.cast_column("image", datasets.Image(decode=False))
        ours = {row.image.uri: row.caption for each in indexed(root).values() for row in each if row.image}
        assert len(ours) == len(tree)
        for row in found:
            caption = ours[row["image"]["path"]]
            assert (None if caption is None else caption.decode()) == row["text"]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize("config", [{}, {"caption_column": "alt", "url_column": "link"}])
def test_a_row_counts_like_a_json_file_with_the_same_keys_beside_the_picture(
    tmp_path: Path, ending: str, config: dict[str, object]
) -> None:
    rows: list[Row] = [
        {"caption": "a cat", "alt": "the cat", "url": "http://e.org/1", "uid": "AB" * 16, "width": 7, "nested": [1.5]},
        {"caption": ["one", None, "two"], "alt": None, "link": "http://e.org/2", "wide": True},
        {"caption": "", "text": "instead"},
        {"caption": 8, "score": 0.5} if ending == ".jsonl" else {"score": 0.5},
        {"caption": None},
    ]
    if ending == ".parquet":
        rows[1]["caption"] = "one"  # a column has one type
    for number, row in enumerate(rows):
        for folder in ("table", "json"):
            picture(tmp_path / folder / f"{number}.png")
        keys = dict.fromkeys(each for row in rows for each in row) if ending == ".parquet" else row
        (tmp_path / f"json/{number}.json").write_text(json.dumps({key: row.get(key) for key in keys}))
    write(tmp_path / f"table/metadata{ending}", [{"file_name": f"{n}.png", **row} for n, row in enumerate(rows)])
    (table,), (beside,) = (indexed(tmp_path / folder, **config).values() for folder in ("table", "json"))
    for row, expected in zip(table, beside, strict=True):
        expected = replace(expected, image=row.image)
        problem = (expected.caption_problem or "").replace("3.json", "metadata.jsonl") or None
        assert row == replace(expected, caption_problem=problem)


def test_each_file_and_each_row_without_a_picture_is_accounted_for(tmp_path: Path) -> None:
    for name in ("in/sub/a.png", "in/sub/b.png", "in/sub/b.jpg", "in/c/d.png", "in/c/e.png"):
        picture(tmp_path / name)
    (tmp_path / "in/sub/a.txt").write_text("beside")
    (tmp_path / "in/metadata.csv").write_text(
        "file_name,text,license\nsub\\a.png,table,cc0\n./sub/b.png,one,cc-by\nsub//b.png,two,\nsub/b.jpg,another,\n"
        "gone.png,lost,\ngone.png,twice,\n../c/d.png,out,\nc/d.png,far,\n,nameless,\ntoo,many,fields,here\n"
    )
    (tmp_path / "in/c/metadata.jsonl").write_text('{"file_name": "d.png", "text": "near"}\n')
    (tmp_path / "in/sub/metadata.csv").write_bytes("name,text\na.png,Prüfer's own list\n".encode("latin-1"))
    tally = Tally()
    rows = indexed(tmp_path / "in", tally)
    job = {"source": {"paths": [str(tmp_path / "in")], "kind": "corpus"}, "output": str(tmp_path / "out")}
    store = Store(str(tmp_path / "out"))
    plan = make_plan(JobRecord(BuildJob.model_validate({**job, "models": [{"name": "tiny"}]}), "f" * 32), store)
    assert (plan.seen, plan.num_rows, plan.parts) == (tally.seen, tally.rows, tally.parts)
    assert tally.passed_over == {PassedOver.TABLE: 1} == plan.passed_over
    assert (tally.seen, tally.rows, tally.parts) == (9 + 4, 5 + 4, 3)
    assert [(row.key, row.captions, dict(row.fields)) for row in rows["/sub/"]] == [
        ("a", (b"beside",), {"text": "table", "license": "cc0"}),
        ("b", (b"another",), {"text": "another", "license": None}),
        ("b", (b"one", b"two"), {"text": "one", "license": "cc-by"}),
    ]
    assert [(row.key, row.caption) for row in rows["/c/"]] == [("d", b"near"), ("e", None)]
    assert [(row.key, row.captions, row.problem) for row in rows["/"]] == [
        ("gone", (b"lost", b"twice"), "metadata.csv: there is no picture gone.png"),
        ("../c/d", (b"out",), "metadata.csv: there is no picture ../c/d.png"),
        (None, None, "metadata.csv: a row has no file_name"),
        (None, None, "metadata.csv: 4 fields, not 3: too,many,fields,here"),
    ]


OFFSET, UTC = "1969-12-31 14:30:00.00{}-0930", "1970-01-01 00:00:00.00{}Z"


def test_the_values_of_a_parquet_table_arrive_unchanged_or_are_counted_as_left_out(tmp_path: Path) -> None:
    nan, inf, maps = math.nan, math.inf, pa.map_(pa.string(), pa.float64())
    columns: dict[str, tuple[pa.Array, list[Any]]] = {
        "double": (pa.array([nan, -inf, 0.1]), [nan, -inf, 0.1]),
        "missing": (pa.array([nan, nan, nan]), [nan, nan, nan]),
        "float": (pa.array([0.1, inf, None], pa.float32()), [float(np.float32(0.1)), inf, None]),
        "list": (pa.array([[1.5, nan], None, []]), ["[1.5, NaN]", None, "[]"]),
        "views": (pa.array([[1], [2, 3], []], pa.list_view(pa.int8())), ["[1]", "[2, 3]", "[]"]),
        "struct": (pa.array([{"a": inf}, None, None]), ['{"a": Infinity}', None, None]),
        "map": (pa.array([[("k", nan)], [], None], maps), ['[["k", NaN]]', "[]", None]),
        "binary": (pa.array([b"\xff\0", b"ascii", b""]), [None, "ascii", ""]),
        "latin": (pa.array([b"caf\xe9", b"ok", None]).view(pa.string()), [None, "ok", None]),
        "coded": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        "fixed": (pa.array([b"\xff\0", None, b"ab"], pa.binary(2)), ["/wA=", None, "YWI="]),
        "nested": (pa.array([[b"\xff\0"], None, None]), ['["/wA="]', None, None]),
        "time": (pa.array([1, None, 0], pa.time64("ns")), ["00:00:00.000000001", None, "00:00:00.000000000"]),
        "zone": (pa.array([1, None, 0], pa.timestamp("ms", "-0930")), [OFFSET.format(1), None, OFFSET.format(0)]),
        "mars": (pa.array([1, None, 0], pa.timestamp("ms", "Mars")), [UTC.format(1), None, UTC.format(0)]),
        "big": (pa.array([2**64 - 1, 0, None], pa.uint64()), ["18446744073709551615", "0", None]),
    }
    names = [f"{number}.png" for number in range(3)]
    for name in names:
        picture(tmp_path / "in" / name)
    table = {"file_name": names, **{name: array for name, (array, _) in columns.items()}}
    pq.write_table(pa.table(table), tmp_path / "in/metadata.parquet", row_group_size=2)
    plan, found = planned(tmp_path)
    assert plan.inputs[0].left_out_fields == 2
    for name, (_, expected) in columns.items():
        assert repr(found[name].to_pylist()) == repr(expected), name
    doubles = [name for name in columns if pa.types.is_float64(found[name].type)]
    assert doubles == ["double", "missing", "float"]


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_times_of_the_old_type_int96_arrive_unchanged(tmp_path: Path, unit: str) -> None:
    """The oracle is the same table with times of the current type."""
    moments = pa.array([-(10**15), 0, 7, 10**15], pa.timestamp(unit))
    if unit == "us":
        moments = pa.array([datetime(1, 1, 1), None, datetime(1600, 2, 29, 1, 2, 3, 4), datetime(9999, 12, 31)])
    names = [f"{row}.png" for row in range(len(moments))]
    lists = pa.array([[each] for each in moments.to_pylist()])
    table = {"file_name": names, "at": moments, "list": lists, "name": pa.array(names).dictionary_encode()}
    found = []
    for is_old in (False, True):
        folder = tmp_path / str(is_old)
        for name in names:
            picture(folder / "in" / name)
        options = {"use_deprecated_int96_timestamps": is_old, "row_group_size": 3}
        pq.write_table(pa.table(table), folder / "in/metadata.parquet", **options)
        found.append(planned(folder)[1].select(["at", "list"]).to_pylist())
    assert found[0] == found[1]


def test_times_of_the_old_type_int96_that_fit_into_no_unit_are_refused() -> None:
    microseconds = pa.array([datetime(9999, 12, 31), datetime(2020, 1, 1)], pa.timestamp("us"))
    nanoseconds = microseconds.cast(pa.timestamp("ns"), safe=False)
    batch, finer = (pa.record_batch({"at": each}) for each in (microseconds, nanoseconds))
    assert exact_times(batch, finer).equals(batch)
    one_later = pa.array([each + 1 for each in nanoseconds.cast(pa.int64()).to_pylist()]).cast(nanoseconds.type)
    with pytest.raises(pa.ArrowInvalid, match="column 'at' has nanoseconds in the old type INT96"):
        exact_times(batch, pa.record_batch({"at": one_later}))


@pytest.mark.parametrize("header", ["text,text,", "text,text ,", " text,text,"])
def test_every_column_of_a_csv_table_arrives_whatever_its_name(tmp_path: Path, header: str) -> None:
    """As in a list of URLs, repeated and empty names get the number of their column."""
    picture(tmp_path / "in/0.png")
    (tmp_path / "in/metadata.csv").write_text(f"file_name,{header},license\n0.png,a cat,a dog,cc0,by\n")
    _, table = planned(tmp_path)
    row = table.select(["caption", "text_3", "column_4", "license"]).to_pylist()
    assert row == [{"caption": "a cat", "text_3": "a dog", "column_4": "cc0", "license": "by"}]


def planned(folder: Path) -> tuple[Plan, pa.Table]:
    """The plan of the folder `in`, and its only shard."""
    job = {"source": {"paths": [str(folder / "in")], "kind": "corpus"}, "output": str(folder / "out")}
    store = Store(str(folder / "out"))
    plan = make_plan(JobRecord(BuildJob.model_validate({**job, "models": [{"name": "tiny"}]}), "f" * 32), store)
    reader = ShardReader(store, plan.mapping)
    (table,) = map(reader.read, shards_from_table(plan.shards))
    reader.close()
    return plan, table


def test_stray_quotation_marks_in_a_table_with_tabs_join_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text('file_name\ttext\na.jpg\t"x\n"b c.PNG"\ty"\nd.jpg\t"two\nlines"\n')
    found = metadata_table.read_table(str(path), Files(), SourceConfig(paths=["-"]))
    texts = {name: json.loads(row)["text"] for name, (row,) in found.rows.items()}
    assert (texts, found.problems) == ({"a.jpg": '"x', "b c.PNG": 'y"', "d.jpg": "two\nlines"}, [])


def test_a_lone_surrogate_in_a_table_is_replaced_and_refuses_only_its_row(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    rows = [{"file_name": "\ud800.png", "text": "lost"}, {"file_name": "a.png", "text": "found"}]
    (tmp_path / "in/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, table = planned(tmp_path)
    assert table.select(["caption", "status", "status_detail"]).to_pylist() == [
        {"caption": "found", "status": "ok", "status_detail": None},
        {
            "caption": "lost",
            "status": "row_malformed",
            "status_detail": f"metadata.jsonl: there is no picture {3 * REPLACEMENT}.png",
        },
    ]


def test_the_fingerprint_of_a_folder_covers_the_tables_that_describe_it(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/0.png"):
        picture(tmp_path / name)

    def fingerprints() -> dict[str, str]:
        corpus = Corpus(SourceConfig(paths=[str(tmp_path)], kind="corpus"), Files())
        return {uri[len(str(tmp_path)) :]: corpus.fingerprint(uri) for uri in corpus.inputs("/nowhere").files}

    def changed(text: str | None) -> set[str]:
        before = fingerprints()
        if text is not None:
            (tmp_path / "metadata.csv").write_text(text)
        else:
            picture(tmp_path / "c/1.png")
        return {uri for uri, fingerprint in fingerprints().items() if fingerprint != before.get(uri)}

    assert changed("name,text\na/0.png,other\n") == set()
    assert changed("file_name,text\na/0.png,one\nc/1.png,gone\n") == {"/", "/a/"}
    assert changed("file_name,text\na/0.png,two\nc/1.png,gone\n") == {"/", "/a/"}
    assert changed(None) == {"/", "/c/"}


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, store_schema=False)
    return file.getvalue()


UNREADABLE_NAME = _parquet(pa.table({"file_name": ["0.png"], "NAME": [1]})).replace(b"NAME", b"N\xffM\xe9")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"file_name,text\n" + b"0.png,long\n" * 8, r"metadata.csv: 103 bytes are too many .* split"),
        ("metadata.jsonl", b"not JSON\n", r"metadata.jsonl: has no JSON objects"),
        ("metadata.parquet", b"PAR1 and no more", r"metadata.parquet: not a complete Parquet file"),
        ("metadata.csv", "file_name,text\n0.png,Hündchen\n".encode("latin-1"), r"metadata.csv: is not UTF-8"),
        ("metadata.csv", b"file_name,a,a_4,a\n0.png,1,2,3\n", r"metadata.csv: two columns share a name"),
        ("metadata.parquet", UNREADABLE_NAME, r"metadata.parquet: the name of a column is not UTF-8"),
        ("metadata.csv", None, r"metadata.csv: is a link to a file outside its folder"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, message: str
) -> None:
    monkeypatch.setattr(metadata_table, "MAX_TABLE_BYTES", 100)
    picture(tmp_path / "in/0.png")
    if content is None:
        (tmp_path / "secret").write_text("file_name,text\n0.png,secret\n")
        (tmp_path / "in" / name).symlink_to(tmp_path / "secret")
    else:
        (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        indexed(tmp_path / "in")


def test_two_tables_in_one_folder_are_refused_and_a_remote_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(fs, "store", {})
    fs.pipe("/tables/in/a/0.png", b"x")
    fs.pipe("/tables/in/metadata.jsonl", b'{"file_name": "a/0.png", "text": "far"}\n')
    corpus = Corpus(SourceConfig(paths=["memory://tables/in"], kind="corpus"), Files())
    _, folder = corpus.inputs("/nowhere").files
    assert [row.caption for row in corpus._rows(folder, Tally(), TextUse())] == [b"far"]
    fs.pipe("/tables/in/metadata.csv", b"file_name,text\na/0.png,far\n")
    with pytest.raises(SourceError, match=r"in: contains metadata.jsonl and metadata.csv; keep one of them"):
        Corpus(SourceConfig(paths=["memory://tables/in"], kind="corpus"), Files()).inputs("/nowhere")


@pytest.mark.parametrize(("name", "file_name"), [("cafe\u0301", "caf\u00e9"), ("caf\u00e9", "cafe\u0301")])
def test_the_unicode_normal_form_of_a_name_does_not_matter(tmp_path: Path, name: str, file_name: str) -> None:
    picture(tmp_path / name / f"{name}.png")
    write(tmp_path / "metadata.csv", [{"file_name": f"{file_name}/{file_name}.png", "text": "a cup"}])
    tally = Tally()
    (row,) = (row for rows in indexed(tmp_path, tally).values() for row in rows)
    assert (row.caption, tally.passed_over) == (b"a cup", {})


def test_a_row_that_names_the_text_beside_a_picture_does_not_describe_the_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").touch()
    write(tmp_path / "metadata.csv", [{"file_name": "a.txt", "text": "a cup"}])
    (rows,) = indexed(tmp_path).values()
    assert [(row.caption, row.problem) for row in rows] == [
        (b"", None),
        (b"a cup", "metadata.csv: there is no picture a.txt"),
    ]
