"""Tests that a search for purged rows finds a value in every notation, encoding and kind of file, but no others."""

import codecs
import csv
import gzip
import html
import io
import json
import random
import tarfile
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from itertools import chain, product
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.purge.keys import canonical_url, digest, hosts_in
from pairmill.pipeline.purge.needles import Needles
from pairmill.pipeline.purge.notations import csv_fields, readings, strings_in, strings_in_cells
from pairmill.pipeline.purge.search_file import FileReport, search_file
from pairmill.pipeline.purge.windows import Window
from pairmill.pipeline.purge.witness import CAPTION

UID, SHA256 = "e9112233445566778899aabbccddee2f", "3d" * 32
URL = "https://pictures.example/caf\u00e9/a%2Fb,c.jpg?x=1&y=2"
CAPTION_TEXT = 'two "caf\u00e9s" & a dog\'s\\cat, again'
NEEDLES = Needles(
    {"uid": frozenset([UID]), "url": frozenset([canonical_url(URL)])},
    captions=frozenset([digest(CAPTION, CAPTION_TEXT.encode())]),
)
NEAR: dict[str, list[str]] = {
    UID: [f"{UID}0", f"2{UID}", f"{UID[:-1]}e", UID[1:]],
    URL: [f"{URL}&z=3", f"{URL}\u00e9", URL[:-1], URL.replace("%2F", "/"), URL.replace("%2F", "%252F"), URL + "%20"],
    CAPTION_TEXT: [f"{CAPTION_TEXT} ", CAPTION_TEXT[:-1], html.escape(CAPTION_TEXT[1:])],
}
"""Value -> other values that must not be taken for it."""


def references(form: str) -> Callable[[str], str]:
    return lambda value: f"<p>{''.join(form.format(ord(each)) for each in value)}</p>"


def utf16_escapes(value: str) -> str:
    return "".join(
        f"\\u{unit[0]:02x}{unit[1]:02X}" for unit in zip(*[iter(value.encode("utf-16-be"))] * 2, strict=True)
    )


def csv_line(value: str) -> str:
    csv.writer(text := io.StringIO()).writerow([1, value, "end"])
    return text.getvalue()


NOTATIONS: dict[str, Callable[[str], str]] = {
    "whole": str,
    "plain": lambda value: f"\n{value}\n",
    "JSON": lambda value: json.dumps([value]),
    "JSON of PHP": lambda value: json.dumps([value]).replace("/", "\\/"),
    "JSON of Go": lambda value: json.dumps([value], ensure_ascii=False).replace("&", "\\u0026"),
    "JSON with only escapes": lambda value: f'["{utf16_escapes(value)}"]',
    "JSON in JSON in JSON": lambda value: json.dumps([json.dumps([json.dumps({"x": value})])]),
    "YAML": lambda value: str(yaml.safe_dump([value], default_style='"', width=1_000)),
    "HTML": lambda value: f"<p>{html.escape(value)}</p>",
    "HTML with quotes": lambda value: f"<p>{html.escape(value, quote=False)}</p>",
    "HTML in an attribute": lambda value: f"<p title='{html.escape(value)}'>",
    "HTML, decimal": references("&#{};"),
    "HTML, hexadecimal": references("&#x{:x};"),
    "JSON in HTML": lambda value: f'<p data-x="{html.escape(json.dumps([value]))}">x</p>',
    "HTML in JSON": lambda value: json.dumps(f"<p>{html.escape(value)}</p>"),
    "CSV": csv_line,
}
NOTATIONS_OF_WORDS: dict[str, Callable[[str], str]] = {
    "in a query": lambda value: f"https://proxy.example/?u={quote(value, safe='')}&w=3",
    "in a path": lambda value: f"https://proxy.example/fetch/{quote(value)}",
    "lower case": lambda value: f"x={quote(value, safe='').replace('%3A', '%3a').replace('%2F', '%2f')}",
    "twice": lambda value: f"https://proxy.example/?u={quote(quote('https://b.example/?u=' + quote(value, safe='')))}",
    "JSON in a query": lambda value: f"https://proxy.example/?q={quote(json.dumps({'x': value}), safe='')}&w=3",
}


def _parquet(path: Path, cell: object) -> None:
    pq.write_table(pa.table({"x": [None, cell]}), path)


def _tar(path: Path, data: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("x.csv")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


FILES: dict[str, Callable[[Path, str], object]] = {
    "utf8.csv": lambda path, text: path.write_text(text, "utf-8"),
    "bom.csv": lambda path, text: path.write_text(text, "utf-8-sig"),
    "utf16.csv": lambda path, text: path.write_text(text, "utf-16"),
    "be.csv": lambda path, text: path.write_bytes(text.encode("utf-16-be")),
    "le.csv": lambda path, text: path.write_bytes(text.encode("utf-16-le")),
    "latin1.csv": lambda path, text: path.write_text(text, "latin-1"),
    "x.csv.gz": lambda path, text: path.write_bytes(gzip.compress(text.encode("utf-16"))),
    "x.tar": lambda path, text: _tar(path, codecs.BOM_UTF16_BE + text.encode("utf-16-be")),
    "text.parquet": _parquet,
    "binary.parquet": lambda path, text: _parquet(path, text.encode("latin-1")),
}


def search(folder: Path, name: str, needles: Needles = NEEDLES) -> FileReport:
    report = search_file(Store(str(folder)), needles, name)
    assert not report.unsearched
    return report


@pytest.mark.parametrize("name", FILES)
def test_a_value_is_found_in_every_notation_and_no_other_value_is_taken_for_it(tmp_path: Path, name: str) -> None:
    for value, others in NEAR.items():
        notations = {**NOTATIONS, **(NOTATIONS_OF_WORDS if value != CAPTION_TEXT else {})}
        if name.endswith(".parquet"):
            del notations["CSV"]
            if value == CAPTION_TEXT:
                del notations["YAML"]
        for notation, write in notations.items():
            FILES[name](tmp_path / name, write(value))
            report = search(tmp_path, name)
            assert len(report.found) + len(report.digests | report.parts) == 1, (notation, value)
            for other in others:
                FILES[name](tmp_path / name, write(other))
                report = search(tmp_path, name)
                assert not (report.found or report.digests or report.parts), (notation, other, report.found)


@pytest.mark.parametrize("notation", [*NOTATIONS, "HTML attribute"])
def test_law_a_caption_is_found_whatever_it_begins_and_ends_with(notation: str) -> None:
    write = {**NOTATIONS, "HTML attribute": lambda value: f'<p title="{html.escape(value)}">'}[notation]
    for caption in map("".join, product("\\\"'&%nx", repeat=3)):
        window = Window(write(caption), 0, True, True)
        assert any(caption in strings for strings in chain(strings_in(window), csv_fields(window))), caption
        if notation not in ("CSV", "YAML", "plain", "whole"):
            assert any(caption in strings for strings in strings_in_cells([window.text])), caption


ENDS = ["\\par", "\\cite{a}", "\\Users", "\\012", "\\0", "\\v", "\\e[0m", "\\u00zz", "\\U0001F600", "\\,x"]


@pytest.mark.parametrize("rest", ["", ".", "\\", "\\n", '\\"', "&quot;", "&lt;/a&gt;", *ENDS])
def test_a_url_ends_where_the_notation_ends_it(rest: str) -> None:
    needles = Needles({"url": frozenset(["https://a.example/p?id=1"])})
    assert set(needles.in_text(f"see https://a.example/p?id=1{rest}")) == {"url https://a.example/p?id=1"}
    for more in (
        "\\u0026w=2",
        "\\x26w=2",
        "\\u00e9",
        "\\/x",
        "\\\\u0026w=2",
        "&amp;w=2",
        "&#38;w=2",
        "&lt=2",
        "%20",
        "\\&w=2",
    ):
        assert not list(needles.in_text(f"see https://a.example/p?id=1{more}{rest}")), more


def test_characters_beyond_16_bits_and_of_windows_1252_are_read(tmp_path: Path) -> None:
    caption = "a smile \U0001f600 for 5 \u20ac"
    needles = Needles({}, captions=frozenset([digest(CAPTION, caption.encode())]))
    texts = [json.dumps(caption), yaml.safe_dump(caption), html.escape(caption).encode("ascii", "xmlcharrefreplace")]
    for text in [
        *texts,
        json.dumps(caption, ensure_ascii=False).replace("\U0001f600", "\\ud83d\\uDE00").encode("cp1252"),
    ]:
        (tmp_path / "x").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert search(tmp_path, "x", needles).parts, text


@pytest.mark.parametrize("listed", [True, False])
def test_uids_are_found_in_any_column_in_the_name_of_a_file_and_as_bytes(tmp_path: Path, listed: bool) -> None:
    needles = Needles({"uid": frozenset([UID])} if listed else {}, uids=frozenset([digest("uid", UID.encode())]))
    raw, values = (
        bytes.fromhex(UID),
        [str(uuid.UUID(UID)).upper(), UID.upper(), f"id={UID}", f"urn:uuid:{uuid.UUID(UID)}"],
    )
    arrays = [pa.array(values), pa.array([raw, b"x"]), pa.array([raw], pa.binary(16)), pa.array([[raw]])]
    for array in [*arrays, pa.array([raw]).dictionary_encode(), pa.ExtensionArray.from_storage(pa.uuid(), arrays[2])]:
        pq.write_table(pa.table({"x": array}), tmp_path / "x.parquet")
        assert search(tmp_path, "x.parquet", needles).found, array
    (tmp_path / UID.upper()).write_bytes(b"")
    assert search(tmp_path, UID.upper(), needles).found


def test_hashes_are_found_as_bytes_except_in_the_ledger(tmp_path: Path) -> None:
    """The ledger contains the listed PDQ hashes."""
    needles = Needles({"sha256": frozenset([SHA256]), "pdq": frozenset([SHA256])})
    (tmp_path / "withdrawn").mkdir()
    for name, found in (
        ("x.parquet", {f"{kind} {SHA256} (column x)" for kind in ("sha256", "pdq")}),
        ("withdrawn/x.parquet", set()),
    ):
        pq.write_table(pa.table({"x": pa.array([bytes.fromhex(SHA256)], pa.binary(32))}), tmp_path / name)
        assert search(tmp_path, name, needles).found == found


def test_windows_of_utf16_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a pair of bytes nor a value is lost at the cuts."""
    text = "".join(f"\u5199\u771f\U0001f600 {number}\n" for number in range(3_000)) + json.dumps(URL)
    (tmp_path / "x").write_text(text, "utf-16")
    monkeypatch.setattr("pairmill.pipeline.purge.windows.BLOCK_BYTES", 1_001)
    monkeypatch.setattr("pairmill.pipeline.purge.search_file._MIN_OVERLAP", 100)
    report = search(tmp_path, "x")
    assert report.found == {f"url {canonical_url(URL)}"}
    assert report.counts["bytes"] > len(text.encode())


def test_captions_are_found_beside_fields_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairmill.pipeline.purge.windows.BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr("pairmill.pipeline.purge.search_file._MIN_OVERLAP", 1 << 10)
    captions = [f"number {number} of all" for number in range(60)]
    needles = Needles({}, captions=frozenset(digest(CAPTION, each.encode()) for each in captions))
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        lines = [delimiter.join([each, "A" * (200_000 if each == captions[9] else 3_000)]) for each in captions]
        (tmp_path / name).write_text("\n".join(lines))
        assert len(search(tmp_path, name, needles).parts) == len(captions)


def test_members_of_tars_are_searched_or_named(tmp_path: Path) -> None:
    members = {
        "a.txt": f"{CAPTION_TEXT}\n\0",
        "b.npy": f"\x93NUMPY\0{URL}",
        "c.json": f'\0"{UID}"',
        "d.parquet": "PAR1",
    }
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    report = search_file(Store(str(tmp_path)), NEEDLES, "x.tar")
    assert report.found == {f"url {canonical_url(URL)} (member b.npy)", f"uid {UID} (member c.json)"}
    assert (len(report.parts), report.unsearched) == (1, {"is Parquet (member d.parquet)"})


TOKENS = [
    *['"', "'", "<b>", "\n", "a", "b", "&quot;", "&#39;", "&lt;p&gt;", "&amp;quot;", "&amp;amp;#10;", '\\"', "\\\\n"],
    *["\\u003cb\\u003e", "\\u0026quot;", "\\u0025", "%2F", "%26amp;", "%5C/"],
]


@pytest.mark.parametrize("read", [lambda text: strings_in(Window(text, 0, True, True)), readings, strings_in_cells])
def test_reading_any_text_takes_linear_time_and_little_memory(read: Callable[[str], Iterable[Collection[str]]]) -> None:
    """Each text makes at most a few times its own length, little of it at a time."""
    text = "".join(random.Random(1).choices(TOKENS, k=10_000))
    texts = [text[at : at + 500] for at in range(0, len(text), 500)] if read is strings_in_cells else text
    lengths = [sum(map(len, strings)) for strings in read(texts)]  # type: ignore[arg-type]
    assert max(lengths) < 5 * len(text)
    assert sum(lengths) < 25 * len(text)


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0301\u0327" * 40_000 + ".",
        "a." * 40_000 + "a",
        "http:" + "/" * 40_000 + '"x',
        f"http://{'a.' * 40_000}/'",
    ],
)
def test_searching_any_text_takes_linear_time(text: str) -> None:
    needles = Needles({"host": frozenset(["bad.example"]), "url": frozenset(["https://a.example/b"])})
    start = time.process_time()
    assert not [*needles.in_text(text), *needles.in_cells([text])]
    assert time.process_time() - start < 1
    assert len(hosts_in(text)) < 130


def test_numbers_of_two_bytes_are_not_taken_for_text(tmp_path: Path) -> None:
    numbers = b"\0".join(bytes([number]) for number in range(256)) * 9
    (tmp_path / "x").write_bytes(numbers)
    report = search(tmp_path, "x")
    assert (report.counts["bytes"], report.counts["captions"]) == (len(numbers) + len("x"), 0)
    (tmp_path / "x").write_bytes(b"x" * 600 + bytes(range(256)) * 9)
    assert search(tmp_path, "x").counts["captions"] == 0
