"""Tests how known values are read from lists and datasets and looked up. Sets and hashlib are the oracles."""

import csv
import gzip
import hashlib
import io
import re
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known import bands, key_file, key_sorter, table_list, text_list
from pairmill.pipeline.known.key_file import KeyFile, write_keys
from pairmill.pipeline.known.key_sorter import KeySorter
from pairmill.pipeline.known.keys import HEX_DIGITS, Keys, lookup_keys
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.read_values import Tally
from pairmill.pipeline.known.shared import SharedKeys, shared_keys
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.known import KnownRows, KnownSource
from tests.synthetic_dataset import write_dataset

NUMBERS = st.integers(0, 2**64 - 1)
KEYS = st.one_of(
    st.lists(NUMBERS, max_size=200),
    st.lists(st.integers(0, 40), max_size=200),  # all keys in one bucket, with many repeats
    st.lists(st.integers(2**64 - 40, 2**64 - 1), max_size=200),
    st.lists(st.integers(0, 255).map(lambda top: top << 56), max_size=300),  # keys in every range of the sort
)


def written(keys: list[int], batches: int, path: Path) -> KeyFile:
    """A key file to which these keys are added in batches."""
    with tempfile.TemporaryFile() as scratch, path.open("w+b") as file:
        sorter = KeySorter(scratch)
        for batch in np.array_split(np.array(keys, np.uint64), batches):
            sorter.add(batch)
        assert write_keys(file, sorter.in_order()) == len(set(keys))
    return KeyFile.open(str(path))


@given(KEYS, st.lists(NUMBERS, max_size=20), st.integers(1, 4), st.sampled_from([7, 50, 1 << 23]))
def test_a_key_file_contains_exactly_its_keys_whatever_their_order_and_batches(
    keys: list[int], others: list[int], batches: int, run_keys: int
) -> None:
    near = [(key + step) % 2**64 for key in keys[:50] for step in (-1, 1)]
    asked = [*keys, *near, *others, 0, 2**64 - 1]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as context:
        context.setattr(key_sorter, "RUN_KEYS", run_keys)
        file = written(keys, batches, Path(folder, "keys"))
        assert file.keys.tolist() == sorted(set(keys))
        assert file.contains(np.array(asked, np.uint64)).tolist() == [key in set(keys) for key in asked]
        assert file.contains(np.zeros(0, np.uint64)).tolist() == []
        again = written(list(reversed(keys)), 1, Path(folder, "again"))
        assert Path(folder, "keys").read_bytes() == Path(folder, "again").read_bytes(), len(again)


def test_a_key_takes_at_most_72_bits(tmp_path: Path) -> None:
    for count in (1_000, 4_097, 65_537):
        keys = np.random.default_rng(count).integers(0, 2**64, count, np.uint64)
        written(keys.tolist(), 1, tmp_path / "keys")
        assert 64 < 8 * ((tmp_path / "keys").stat().st_size - 40) / count <= 72


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:20], lambda data: b"P" + data[1:]]
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    written([*range(100)], 1, tmp_path / "keys")
    (tmp_path / "keys").write_bytes(damage((tmp_path / "keys").read_bytes()))
    with pytest.raises(KnownError, match="is damaged"):
        KeyFile.open(str(tmp_path / "keys"))


def found(
    tmp_path: Path, known: dict[str, object], **columns: list[str | None]
) -> tuple[list[list[bool]], KnownSource]:
    """For each column, whether each value is known, and the source of the known values."""
    with shared_keys(Store(str(tmp_path / "own")), KnownRows.model_validate(known)) as (source, keys):
        by_kind: dict[str, SharedKeys] = {each.which.kind: each for each in keys}
        return [
            by_kind[name].contains(pa.table({name: pa.array(values, pa.string())})).tolist()
            for name, values in columns.items()
        ], source


URLS = ["http://a.example/1.jpg", "http://a.example/ä?b=1", "http://A.example/1.jpg", "http://a.example/1.jpg#x"]
DIGEST = hashlib.sha256(b"picture").hexdigest()


def as_text(values: list[str]) -> bytes:
    return ("\ufeff# a comment\n\n" + "\r\n".join(f" {value} " for value in values)).encode()


def as_csv(values: list[str], delimiter: str = ",") -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(
        [["n", "URL"], *([n, value] for n, value in enumerate([*values, ""]))]
    )
    return file.getvalue().encode()


def as_parquet(values: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(
        pa.table({"other": [1] * (len(values) + 1), "url": pa.array([*values, None]).dictionary_encode()}), file
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", as_text),
        ("a.list", as_text),
        ("a.txt.gz", lambda values: gzip.compress(as_text(values))),
        ("a.csv", as_csv),
        ("a.csv.gz", lambda values: gzip.compress(as_csv(values))),
        ("a.tsv", lambda values: as_csv(values, "\t")),
        ("a.parquet", as_parquet),
    ],
)
def test_urls_are_read_from_lists_of_all_formats(
    tmp_path: Path, name: str, content: Callable[[list[str]], bytes]
) -> None:
    listed = [URLS[0], hashlib.sha256(URLS[1].encode()).hexdigest().upper(), f"\u00a0{URLS[0]}\t"]
    (tmp_path / name).write_bytes(content(listed))
    (known,), source = found(tmp_path, {"path": str(tmp_path / name)}, url=[*URLS, f" {URLS[0]}\n", None, "", " "])
    assert known == [True, True, False, False, True, False, False, False]
    assert source.values == {"url": 3}
    assert sum(source.unused.values()) == (2 if name.startswith(("a.txt", "a.list")) else 1)
    assert not list((tmp_path / "own").glob("tmp/*"))  # no temporary files are left


@pytest.mark.parametrize("kind", ["uid", "sha256", "md5", "phash", "pdq"])
def test_digests_and_uids_are_recognized_in_any_usual_notation(tmp_path: Path, kind: Any) -> None:
    digits = HEX_DIGITS[kind]
    values = [hashlib.sha512(bytes([n])).hexdigest()[:digits] for n in range(40)]
    given_forms = [value.upper() for value in values[:20]]
    if kind == "uid":
        given_forms[:5] = [str(uuid.UUID(value)) for value in values[:5]]
    (tmp_path / "a.txt").write_text("\n".join(given_forms))
    (known,), source = found(tmp_path, {"path": str(tmp_path / "a.txt"), "by": kind}, **{kind: [*values, None]})
    assert known == [True] * 20 + [False] * 21
    assert source.values == {kind: 20}


@pytest.mark.parametrize(
    ("kind", "line", "problem"),
    [
        ("url", "photo.jpg", "'photo.jpg' is not a URL"),
        ("url", DIGEST[:-1], "is not a URL"),
        ("sha256", f"{DIGEST}  photo.jpg", "is not a valid sha256 (64 hex digits)"),
        ("md5", DIGEST, "is not a valid md5 (32 hex digits)"),
        ("uid", f"{DIGEST[:30]}zz", "is not a valid uid (32 hex digits)"),
        ("phash", "http://a.example/", "is not a valid phash (16 hex digits)"),
        ("url", b"http://a.example/\xff", "is not UTF-8"),
        ("url", "http://a.example/" + "x" * 6_000, "is longer than 5,000 bytes"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1_000, 1 << 20])
def test_a_malformed_line_is_reported_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, kind: Any, line: Any, problem: str
) -> None:
    monkeypatch.setattr(text_list, "_BLOCK_BYTES", block_bytes)  # line numbers continue across blocks
    monkeypatch.setattr(text_list, "MAX_LINE_BYTES", 5_000)
    good = "http://a.example/" if kind == "url" else DIGEST[: HEX_DIGITS[kind]]
    lines = [good.encode()] * 250
    lines[199] = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    with pytest.raises(KnownError, match=f"a.txt, line 200: .*{re.escape(problem)}"):
        found(tmp_path, {"path": str(tmp_path / "a.txt"), "by": kind})


def test_a_bad_value_in_a_table_is_reported_by_row_and_a_bad_table_by_name(tmp_path: Path) -> None:
    for name, content, known, problem in [
        # the blank line is not a row
        (
            "a.csv",
            f"sha256\n{DIGEST}\n\nno\n",
            {},
            "a.csv, row 2: 'no' is not a valid sha256",
        ),  # the blank line is not a row
        ("b.csv", "url,n\nhttp://a/,1\nhttp://b/\n", {}, "b.csv, row 2: has 1 field, but the header has 2"),
        ("q.tsv", 'url\tn\nhttp://a/\t1\nhttp://b/\t"2" x\n', {}, "q.tsv, row 2: cannot be read .* must be doubled"),
        ("q.csv", 'url,n\nhttp://a/,"1\n', {}, "q.csv, row 1: cannot be read .* must be doubled"),
        ("c.csv", "link\nhttp://a/\n", {}, "c.csv has no column 'url' or 'sha256': .* it has: 'link'"),
        ("d.csv", "link\nhttp://a/\n", {"by": "url", "column": "links"}, "d.csv has no column 'links'; it has: 'link'"),
        ("e.parquet", "PAR1", {}, "e.parquet cannot be read"),
        ("f.jsonl", "{}", {}, "a list must be .txt, .csv or .tsv"),
        ("g.txt", "http://a/", {"by": ["url", "uid"]}, "one kind of value"),
        ("h.txt", "http://a/", {"rows": "all"}, "is not a dataset"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(KnownError, match=problem):
            found(tmp_path, {"path": str(tmp_path / name), **known})
    pq.write_table(pa.table({"url": [1, 2]}), tmp_path / "i.parquet")
    with pytest.raises(KnownError, match="column 'url' is int64, not text"):
        found(tmp_path, {"path": str(tmp_path / "i.parquet")})
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/readme.md").write_text("not a list")
    for path, problem in [
        (str(tmp_path / "none"), "no input found"),
        (str(tmp_path / "empty"), "no input found"),
        (str(tmp_path / "other"), "neither a dataset .* nor a folder of lists"),
        ("http://a.example/x.txt", "use a local path or s3"),
    ]:
        with pytest.raises(KnownError, match=problem):
            found(tmp_path, {"path": path})


def test_one_wrong_character_in_a_csv_raises_an_error_or_loses_at_most_one_value(tmp_path: Path) -> None:
    text = 'n,url,caption\n1,http://a.example/1,a\n2,"http://a.example/2","b, ""b"""\n3,http://a.example/3,"c\nd"\n'
    path, known = tmp_path / "a.csv", KnownRows.model_validate({"path": "a.csv", "by": "url"})

    def keys(changed: str) -> set[int]:
        path.write_text(changed)
        return {int(key) for _, some in table_list.read_table_list(Files(), str(path), known, Tally()) for key in some}

    expected = keys(text)
    assert len(expected) == 3
    for at in range(text.index("\n") + 1, len(text)):
        for character in ('"', ",", "x", ""):
            with suppress(KnownError):
                assert len(expected - keys(text[:at] + character + text[at + 1 :])) <= 1, (at, character)
    with pytest.raises(KnownError, match=r"a\.csv, row 2: 'url' contains a line feed"):
        keys('url\n1\n"http://a.example/1\nhttp://a.example/2"\n')


@given(st.lists(st.text('"a b', max_size=5), min_size=1, max_size=6), st.sampled_from(["url", "sha256"]), st.booleans())
def test_quotation_marks_in_the_captions_of_a_tsv_raise_an_error_or_lose_no_value(
    captions: list[str], kind: str, value_first: bool
) -> None:
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(len(captions))]
    values = [f"http://a.example/{digest}.jpg" for digest in digests] if kind == "url" else digests
    rows = [(kind, "caption"), *zip(values, captions, strict=True)]
    lines = ["\t".join(row if value_first else reversed(row)) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tsv")
        path.write_text("\n".join([*lines, ""]))
        with suppress(KnownError):
            assert found(Path(folder), {"path": str(path)}, **{kind: values})[0] == [[True] * len(values)]


def test_a_folder_of_lists_counts_as_one_list_whatever_the_order_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "a.txt").write_text(URLS[0])
    (folder / "b.csv").write_text(f"id,Url\n1,{URLS[1]}\n")
    (folder / "readme.md").write_text("not a list")
    (known,), source = found(tmp_path, {"path": str(folder), "by": "url"}, url=list(URLS))
    assert known == [True, True, False, False]
    assert (source.values, source.unused) == ({"url": 2}, {"file of another format": 1})
    (folder / "a.txt").rename(folder / "c.txt")
    assert found(tmp_path, {"path": str(folder), "by": "url"})[1].fingerprint == source.fingerprint
    (folder / "c.txt").write_text(URLS[2])
    assert found(tmp_path, {"path": str(folder), "by": "url"})[1].fingerprint != source.fingerprint


def test_the_rows_of_a_dataset_are_known_and_its_fingerprint_changes_with_it(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", 600, shard_rows=200)
    write_dataset(tmp_path / "b", 600, shard_rows=50)
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in sorted((tmp_path / "a/pairs").iterdir())])
    kinds = ["url", "sha256", "uid", "phash"]
    for rows, expected in [("pairs", table), ("kept", table.filter(pa.compute.equal(table["status"], "ok")))]:
        known, source = found(
            tmp_path,
            {"path": str(tmp_path / "a"), "by": kinds, "rows": rows},
            **{kind: table[kind].to_pylist() for kind in kinds},
        )
        for kind, of_kind in zip(kinds, known, strict=True):
            values = set(expected[kind].to_pylist()) - {None}
            assert of_kind == [value in values for value in table[kind].to_pylist()]
        assert source.is_dataset
    _, source = found(tmp_path, {"path": str(tmp_path / "a")})
    assert set(source.values) == {"url", "sha256"}
    write_dataset(tmp_path / "a", 800, shard_rows=200)
    assert found(tmp_path, {"path": str(tmp_path / "a")})[1].fingerprint != source.fingerprint


@given(
    st.lists(st.tuples(NUMBERS, st.lists(st.integers(0, 63), max_size=10)), min_size=1, max_size=30), st.integers(0, 8)
)
def test_hashes_are_known_within_a_distance(listed: list[tuple[int, list[int]]], distance: int) -> None:
    asked = [number ^ sum(1 << bit for bit in set(bits)) for number, bits in listed]
    known = [number for number, _ in listed[::2]]
    expected = [any((one ^ other).bit_count() <= distance for other in known) for one in asked]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as context:
        context.setattr(bands, "_PAIRS", 3)
        list_of = Path(folder, "a.txt")
        list_of.write_text("\n".join(f"{number:016x}" for number in known))
        values: dict[str, object] = {"path": str(list_of), "by": "phash", "distance": distance}
        rows = pa.table({"phash": pa.array([f"{number:016x}" for number in asked], pa.string())})
        with shared_keys(Store(folder), KnownRows.model_validate(values)) as (_, keys):
            answers = [each.contains(rows) for each in keys]
        assert len(answers) == (distance + 1 if known else 0)
        assert np.logical_or.reduce([np.zeros(len(asked), np.bool_), *answers]).tolist() == expected


@pytest.mark.parametrize("distance", [0, 5, 31])
def test_pdq_hashes_are_known_within_a_distance_unless_their_quality_is_low(tmp_path: Path, distance: int) -> None:
    rng = np.random.default_rng(distance)
    known = rng.bytes(32 * 50)
    listed = [int.from_bytes(known[start : start + 32]) for start in range(0, len(known), 32)]
    flips = [sum(1 << int(bit) for bit in rng.choice(256, at % 40, replace=False)) for at in range(200)]
    asked = [listed[at % 50] ^ flip for at, flip in enumerate(flips)]
    (tmp_path / "a.txt").write_text("\n".join(f"{number:064X}" for number in listed))
    quality = [at % 100 for at in range(200)]
    rows = pa.table({"pdq": [f"{number:064x}" for number in asked], "pdq_quality": pa.array(quality, pa.uint8())})
    values = {"path": str(tmp_path / "a.txt"), "by": "pdq", "distance": distance}
    with shared_keys(Store(str(tmp_path)), KnownRows.model_validate(values)) as (_, (keys,)):
        is_near = [min((one ^ other).bit_count() for other in listed) <= distance for one in asked]
        assert keys.contains(rows.drop_columns(["pdq_quality"])).tolist() == is_near
        assert keys.contains(rows).tolist() == [near and at >= 50 for near, at in zip(is_near, quality, strict=True)]


def test_keys_are_the_first_bits_of_the_sha256(tmp_path: Path) -> None:
    def first(value: str) -> int:
        return int(hashlib.sha256(value.encode()).hexdigest()[:16], 16)

    keys: Keys = lookup_keys("url", pa.array([URLS[1], None, f" {URLS[1]} "]))[0]
    assert keys.tolist() == [first(URLS[1]), 0, first(URLS[1])]
    assert lookup_keys("uid", pa.array([DIGEST[:32]]))[0].tolist() == [first(DIGEST[:32])]
    assert lookup_keys("sha256", pa.array([DIGEST]))[0].tolist() == [int(DIGEST[:16], 16)]
    assert lookup_keys("phash", pa.array([DIGEST[:16]]))[0].tolist() == [int(DIGEST[:16], 16)]
    with pytest.raises(ValueError, match="64 hex digits"):
        lookup_keys("sha256", pa.array(["ab"]))
    assert key_file.bucket_bits(0) == key_file.bucket_bits(16) == 0


def test_a_job_computes_the_columns_by_which_it_recognizes_known_rows() -> None:
    urls = {"source": {"paths": ["a.csv"]}, "output": "out"}
    assert not BuildJob.model_validate(urls).computes_md5
    assert BuildJob.model_validate({**urls, "rules": {"known": [{"path": "x", "by": "md5"}]}}).computes_md5
    with pytest.raises(ValueError, match="by: pdq needs a score with the measure pdq"):
        BuildJob.model_validate({**urls, "rules": {"known": [{"path": "x", "by": "pdq"}]}})
    corpus = {**urls, "source": {"paths": ["a"], "kind": "corpus"}, "models": [{"name": "tiny"}]}
    with pytest.raises(ValueError, match="compared by phash or pdq here; use the step `known` of pairmill select"):
        BuildJob.model_validate({**corpus, "rules": {"known": [{"path": "x", "by": "phash"}]}})
    assert "known" not in BuildJob.model_validate(urls).model_dump()["rules"]  # earlier versions can read the record
