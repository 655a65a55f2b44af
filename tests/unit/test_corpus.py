"""Tests the indexing of a corpus of tars or folders, including awkward ones."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.corpus.discover import Corpus
from pairmill.pipeline.source.corpus.folders import folder_rows, words_of
from pairmill.pipeline.source.corpus.index import split_name
from pairmill.pipeline.source.corpus.sidecar import TextUse
from pairmill.pipeline.source.corpus.tars import tar_rows
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.mapping import ColumnPictures, NoPictures
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.passed_over import PassedOver, Tally

Member = tuple[str, bytes]


def tar_of(path: Path, members: list[Member]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def rows_of(path: Path, members: list[Member]) -> list[dict[str, object]]:
    return list(tar_rows(tar_of(path, members), Files()))


def corpus(*paths: Path, **settings: Any) -> Corpus:
    return Corpus(SourceConfig(paths=[str(path) for path in paths], kind="corpus", **settings), Files())


def test_files_with_the_same_stem_form_a_sample_whose_row_has_the_byte_range_of_the_picture(tmp_path: Path) -> None:
    members = [("0.jpg", b"JPEG0"), ("0.txt", b"a dog"), ("1.png", b"PNG-1"), ("1.json", b'{"caption": "a cat"}')]
    rows = rows_of(tmp_path / "a.tar", members)
    assert [(row.key, row.caption, row.problem) for row in rows] == [
        ("0", b"a dog", None),
        ("1", b"a cat", None),
    ]
    data = (tmp_path / "a.tar").read_bytes()
    for row, expected in zip(rows, (b"JPEG0", b"PNG-1"), strict=True):
        assert data[row.image.offset :][: row.image.length] == expected


def test_a_missing_caption_is_null_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.tar", [("0.jpg", b"x"), ("1.jpg", b"x"), ("1.txt", b"")])
    assert [row.caption for row in rows] == [None, b""]


def test_a_second_picture_with_the_same_key_is_an_alternate_of_the_first(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.png", b"y"), ("0.txt", b"a dog")])
    assert (row.problem, row.caption, len(row.alternates)) == (None, b"a dog", 1)
    assert row.image.offset < row.alternates[0].offset


def test_a_repeated_name_begins_another_sample_as_in_concatenated_tars(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.txt", b"one"), ("0.jpg", b"y"), ("0.txt", b"two")])
    assert [(row.key, row.caption, row.alternates) for row in rows] == [("0", b"one", ()), ("0", b"two", ())]


def test_a_caption_without_a_picture_is_an_error_row(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "a.tar", [("0.txt", b"a dog")])
    assert row.problem == "no picture with this key"


def test_keys_include_folders_and_end_at_the_first_dot(tmp_path: Path) -> None:
    members = [("a.b/c.d/0.left.jpg", b"x"), ("a.b/c.d/0.txt", b"l"), ("a.b/e/0.jpg", b"x"), ("./0.jpg", b"x")]
    rows = rows_of(tmp_path / "a.tar", members)
    assert [(row.key, row.caption) for row in rows] == [("a.b/c.d/0", b"l"), ("a.b/e/0", None), ("./0", None)]
    assert split_name("a.b/0.JPG") == ("a.b/0", "", "jpg")
    assert split_name("a.b/0.x.Left.JPG") == ("a.b/0", "x.Left", "jpg")


def test_a_caption_that_is_not_utf_8_is_kept_unchanged(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.txt", b"caf\xe9")])
    assert row.caption == b"caf\xe9"


def test_names_that_are_not_utf_8_become_readable(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        member = tarfile.TarInfo("caf\xe9.jpg")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    (row,) = tar_rows(str(tmp_path / "a.tar"), Files())
    assert row.key == "caf�"
    pa.array([row.key], pa.string()).validate(full=True)


@pytest.mark.parametrize("keep", [100, 512, 700, 1024, 1536 + 512 + 3, 3000])
def test_a_truncated_tar_yields_its_whole_samples_and_an_error_row(tmp_path: Path, keep: int) -> None:
    whole = tar_of(tmp_path / "whole.tar", [(f"{n}.jpg", bytes([n]) * 600) for n in range(3)])
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(whole).read_bytes()[:keep])
    try:
        rows = list(tar_rows(str(cut), Files()))
    except SourceError:
        assert keep < 512
        return
    good = [row for row in rows if row.problem is None]
    assert all(row.image.offset + row.image.length <= keep for row in good)
    assert len(good) == max(0, (keep - 512 + 1536 - 600) // 1536)
    assert "truncated" in str(rows[-1].problem)


@pytest.mark.parametrize("keep", [1600, 1536, 4608, 3 * 1536 + 500])
def test_a_tar_truncated_between_members_yields_an_error_row(tmp_path: Path, keep: int) -> None:
    whole = tar_of(tmp_path / "whole.tar", [(f"{n}.jpg", bytes([n]) * 600) for n in range(3)])
    (tmp_path / "cut.tar").write_bytes(Path(whole).read_bytes()[:keep])
    *good, last = tar_rows(str(tmp_path / "cut.tar"), Files())
    assert len(good) == min(3, keep // 1536)
    assert "truncated at byte" in last.problem


def test_a_damaged_header_is_an_error_row_and_the_members_after_it_are_read(tmp_path: Path) -> None:
    path = Path(tar_of(tmp_path / "a.tar", [(f"{n}.jpg", bytes([n]) * 600) for n in range(5)]))
    data = bytearray(path.read_bytes())
    data[2 * 1536] ^= 0xFF  # in the name of the third member
    path.write_bytes(data)
    rows = list(tar_rows(str(path), Files()))
    assert [row.key for row in rows] == ["0", "1", None, "3", "4"]
    assert rows[2].problem == "a.tar: the tar is damaged at byte 3,072: bad checksum; 1,536 bytes are skipped"


def test_concatenated_tars_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [Path(tar_of(tmp_path / f"{n}.part", [(f"{n}.jpg", bytes([n]) * 600)])) for n in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    rows = list(tar_rows(str(tmp_path / "all.tar"), Files()))
    assert [row.key for row in rows] == ["0", "1", "2"]
    data = (tmp_path / "all.tar").read_bytes()
    assert all(data[row.image.offset] == number for number, row in enumerate(rows))


@pytest.mark.parametrize("size", [-512, -1024, -1])
def test_a_size_that_points_backwards_ends_the_tar(tmp_path: Path, size: int) -> None:
    """In tarfile, such a size caused an endless loop (CVE-2025-8194)."""
    member = tarfile.TarInfo("0.jpg")
    member.size = size
    header = member.tobuf(format=tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(2048))
    (row,) = tar_rows(str(tmp_path / "a.tar"), Files())
    assert "negative" in row.problem


def test_long_headers_are_bounded_and_many_of_them_cause_no_recursion(tmp_path: Path) -> None:
    def long_name(size: int) -> bytes:
        member = tarfile.TarInfo("././@LongLink")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, size
        return member.tobuf(format=tarfile.GNU_FORMAT)

    (tmp_path / "a.tar").write_bytes(long_name(600 << 20))
    (row,) = tar_rows(str(tmp_path / "a.tar"), Files())
    assert "truncated at byte" in row.problem
    (tmp_path / "b.tar").write_bytes((long_name(5) + b"0.jpg".ljust(512, b"\0")) * 2_000 + bytes(1024))
    assert list(tar_rows(str(tmp_path / "b.tar"), Files())) == []


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_non_ascii_names_are_read_in_every_tar_format(tmp_path: Path, format: int) -> None:
    names = ["a" * 90 + "/" + "b" * 60, "ü/é"] if format != tarfile.USTAR_FORMAT else ["a" * 90 + "/" + "b" * 60]
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for name in names:
            for ending in ("jpg", "txt"):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = 3
                tar.addfile(member, io.BytesIO(b"abc"))
    rows = list(tar_rows(str(tmp_path / "a.tar"), Files()))
    assert [(row.key, row.caption, row.problem) for row in rows] == [(n, b"abc", None) for n in names]


def test_a_uid_in_json_is_used_only_if_it_is_valid(tmp_path: Path) -> None:
    bodies = [b'{"uid": "\\ud800"}', b'{"uid": 7}', b'{"uid": "%s"}' % (b"AB" * 16)]
    rows = rows_of(
        tmp_path / "a.tar", [m for n, b in enumerate(bodies) for m in ((f"{n}.jpg", b"x"), (f"{n}.json", b))]
    )
    assert [row.uid for row in rows] == [None, None, "ab" * 16]


def test_a_text_that_is_a_link_out_of_its_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jpg").write_bytes(b"x")
    (tmp_path / "in" / "0.txt").symlink_to(tmp_path / "secret")
    (row,) = folder_rows(str(tmp_path / "in"), [("0.jpg", 1), ("0.txt", 6)], False, Files())
    assert (row.caption, row.problem) == (None, "0.txt is a link to a file outside its folder and the source")


def test_empty_tars_have_no_rows_and_other_files_raise_a_clear_error(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "empty.tar", []) == []
    (tmp_path / "text.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(SourceError, match="is not an uncompressed tar"):
        list(tar_rows(str(tmp_path / "text.tar"), Files()))


def test_devices_are_skipped_and_links_out_of_the_tar_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    tally = Tally()
    problems = [row.problem for row in tar_rows(str(tmp_path / "a.tar"), Files(), tally)]
    assert problems == [f"{n}.jpg: a link to /etc/passwd, which is not in the tar" for n in (0, 1)]
    assert tally == Tally(4, 2, 0, Counter({PassedOver.SPECIAL.value: 2}))


@given(st.binary(max_size=3_000), st.integers(0, 5_000))
def test_any_bytes_yield_rows_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    data = bytearray(Path(tar_of(folder / "a.tar", [("0.jpg", b"x" * 600), ("0.json", b"{}")])).read_bytes())
    data[at : at + len(junk)] = junk
    (folder / "b.tar").write_bytes(data)
    try:
        rows = list(tar_rows(str(folder / "b.tar"), Files()))
    except SourceError:
        return
    for row in rows:
        assert row.problem or row.image.offset + row.image.length <= len(data)


def test_the_json_of_a_sample_may_contain_anything(tmp_path: Path) -> None:
    bodies = [b"[1]", b"{", b'{"caption": 7, "url": null, "uid": []}', b"[" * 100_000, b'{"caption": "\\ud800"}']
    rows = rows_of(
        tmp_path / "a.tar", [m for n, b in enumerate(bodies) for m in ((f"{n}.jpg", b"x"), (f"{n}.json", b))]
    )
    assert [row.caption for row in rows] == [None, None, None, None, b"\xed\xa0\x80"]
    problems = [None, "1.json: is not JSON", "2.json: the caption is a number", "3.json: is not JSON", None]
    assert [row.caption_problem for row in rows] == problems


def test_folder_captions_come_from_text_files_or_file_names(tmp_path: Path) -> None:
    for name, data in {
        "red-dog_01.jpg": b"x",
        "b.png": b"y",
        "b.txt": b"a boat",
        "c.jpg": b"z",
        "c.json": json.dumps({"caption": "a car", "url": "http://e.org/c.jpg"}).encode(),
        "readme.txt": b"about",
    }.items():
        (tmp_path / name).write_bytes(data)
    found = corpus(tmp_path, caption_from_name=True)
    (folder,) = found.inputs(str(tmp_path / "out")).files
    assert folder == f"{tmp_path}/"
    rows = list(found._rows(folder, Tally(), TextUse()))
    assert [(row.key, row.caption, row.url) for row in rows] == [
        ("b", b"a boat", None),
        ("c", b"a car", b"http://e.org/c.jpg"),
        ("red-dog_01", b"red dog 01", None),
    ]
    assert words_of("x/red-dog_01") == "red dog 01"
    (plain, _, unnamed) = folder_rows(
        str(tmp_path), [("b.png", 1), ("b.txt", 6), ("c.jpg", 1), ("z.jpg", 1)], False, Files()
    )
    assert (plain.caption, unnamed.caption) == (b"a boat", None)


def test_the_fingerprint_of_a_folder_depends_on_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    found = corpus(tmp_path)
    before = found.fingerprint(f"{tmp_path}/")
    (tmp_path / "notes.md").write_bytes(b"x")
    assert found.fingerprint(f"{tmp_path}/") == before
    (tmp_path / "b.jpg").write_bytes(b"x")
    assert found.fingerprint(f"{tmp_path}/") != before


def test_a_corpus_cannot_mix_kinds_of_files(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", [("0.jpg", b"x")])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match="contains both tars and pictures, such as"):
        corpus(tmp_path).inputs("/nowhere")
    with pytest.raises(SourceError, match="cannot mix"):
        corpus(tmp_path / "a.tar", tmp_path / "pictures").inputs("/nowhere")


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl", "a.json"])
def test_embed_recommends_build_for_a_list_of_urls_unless_the_job_names_the_caption_column(
    tmp_path: Path, name: str
) -> None:
    row = {"Image Link": "http://e.org/a.jpg", "caption": "a"}
    texts = {"a.csv": "Image Link,caption\nhttp://e.org/a.jpg,a\n", "a.json": json.dumps([row])}
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / name)
    else:
        (tmp_path / name).write_text(texts.get(name, json.dumps(row)))
    found = corpus(tmp_path / name)
    files = [found.inspect(uri) for uri in found.inputs("/nowhere").files]
    with pytest.raises(SourceError, match=rf"{name}: is a list of URLs \(column 'Image Link'\), which pairmill build"):
        found.mapping(files, needs_license=False)
    mapping = corpus(tmp_path / name, caption_column="caption").mapping(files, needs_license=False)
    assert (mapping.pictures, mapping.caption_column, mapping.url_column) == (NoPictures(), "caption", "Image Link")


def test_embed_recommends_build_for_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("http://e.org/a.jpg\n")
    with pytest.raises(SourceError, match="is a list of URLs, for pairmill build"):
        corpus(tmp_path / "a.txt").inputs("/nowhere")


def test_parquet_with_pictures_is_recognized_by_its_columns(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"x", "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image, "text": ["a"]}), tmp_path / "hf.parquet")
    pq.write_table(pa.table({"photo": [b"x"], "image": ["a path"], "text": ["a"]}), tmp_path / "own.parquet")
    found = corpus(tmp_path / "hf.parquet")
    mapping = found.mapping([found.inspect(uri) for uri in found.inputs("/nowhere").files], needs_license=False)
    assert (mapping.pictures, mapping.caption_column, mapping.extra.names) == (ColumnPictures("image"), "text", [])
    found = corpus(tmp_path / "own.parquet", image_column="photo")
    mapping = found.mapping([found.inspect(uri) for uri in found.inputs("/nowhere").files], needs_license=False)
    assert (mapping.pictures, mapping.extra.names) == (ColumnPictures("photo"), ["source_image"])
    with pytest.raises(SourceError, match="no column 'text' with bytes"):
        corpus(tmp_path / "own.parquet", image_column="text").inputs("/nowhere")


BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("name", "data_type"),
    [
        ("images", pa.list_(BYTES)),  # FAI-RL#81: such columns were dropped silently
        ("jpg", pa.large_list(pa.binary())),
        ("photo", BYTES),
        ("sample", pa.struct([("image", BYTES)])),
        ("image", pa.list_(pa.uint8())),
        ("image", pa.binary(9)),
        ("image", pa.string()),
        ("jpg", pa.dictionary(pa.int32(), pa.large_string())),
        ("Image_base64", pa.string()),
        ("Image", pa.binary()),
    ],
)
def test_unsupported_columns_of_pictures_are_refused_unless_the_job_names_the_caption_column(
    tmp_path: Path, name: str, data_type: pa.DataType
) -> None:
    table = pa.table({"caption": ["a dog"], name: pa.nulls(1, data_type)})
    pq.write_table(table, tmp_path / "in.parquet")
    refusing = corpus(tmp_path / "in.parquet")
    files = [refusing.inspect(uri) for uri in refusing.inputs("/nowhere").files]
    with pytest.raises(SourceError, match=rf"column '{name}' \(.* seems to contain pictures"):
        refusing.mapping(files, needs_license=False)
    willing = corpus(tmp_path / "in.parquet", caption_column="caption")
    assert willing.mapping([willing.inspect(files[0].uri)], needs_license=False).pictures == NoPictures()


@pytest.mark.parametrize("caption", [pa.binary(), pa.list_(pa.binary()), pa.list_(pa.string())])
def test_captions_and_other_columns_are_not_mistaken_for_pictures(tmp_path: Path, caption: pa.DataType) -> None:
    others = {"id": pa.binary(), "boxes": pa.list_(pa.list_(pa.float32())), "img": pa.null()}
    table = pa.table({name: pa.nulls(1, kind) for name, kind in {"caption": caption, **others}.items()})
    pq.write_table(table, tmp_path / "in.parquet")
    found = corpus(tmp_path / "in.parquet")
    assert found.mapping([found.inspect(uri) for uri in found.inputs("/nowhere").files], False).pictures == NoPictures()


def test_an_empty_tar_and_a_compressed_tar_are_not_ignored_silently(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", [("0.jpg", b"x"), ("1.zip", b"x")])
    (tmp_path / "b.tar").write_bytes(b"")  # tarfile raises ReadError: empty file
    for name in ("c.tar.gz", "d.zip", "e.parquet", "f.md"):
        (tmp_path / name).touch()
    (row,) = tar_rows(str(tmp_path / "b.tar"), Files())
    assert row.problem == "b.tar: the tar is empty; was a copy interrupted?"
    assert corpus(tmp_path).inputs("/nowhere").counts() == {
        PassedOver.ARCHIVE: 2,
        PassedOver.TABLE: 1,
        PassedOver.OTHER_KIND: 1,
    }
    tally = Tally()
    assert len(list(tar_rows(str(tmp_path / "a.tar"), Files(), tally))) == 1
    assert tally.passed_over == {PassedOver.ARCHIVE: 1}


def test_the_output_of_a_job_is_recognized_in_a_folder_of_any_name(tmp_path: Path) -> None:
    name = str(tmp_path / "new\nline" / "pairs" / "000000000.parquet")
    assert corpus(tmp_path).kind(name) == "pairs"


def test_a_folder_has_captions_named_after_the_whole_picture_or_in_another_normal_form_or_case(tmp_path: Path) -> None:
    nfd, nfc = "cafe\u0301", "caf\u00e9"
    texts = {
        "a.jpg": b"", "a.jpg.txt": b"with ending",
        "b.jpg": b"", "b.txt": b"own", "b.jpg.txt": b"not used", "b.jpg.json": b'{"license": "cc0"}',
        "c.jpg": b"", "c.png": b"", "c.jpg.txt": b"of the jpg", "c.png.txt": b"of the png",
        "d.HEIC": b"", "d.jpg": b"", "d.HEIC.txt": b"of both",
        f"{nfd}.jpg": b"", f"{nfc}.txt": b"composed",
        "e.jpg.jpg": b"", "e.jpg.txt": b"own stem",
        "f.tif.txt": b"alone",
        "g.JPG": b"", "g.jpg.txt": b"in another case",
        "h.JPG": b"", "h.jpg": b"", "h.Jpg.txt": b"of either",
    }  # fmt: skip
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
    tally = Tally()
    names = [(name, len(data)) for name, data in texts.items()]
    rows = list(folder_rows(str(tmp_path), names, False, Files(), tally))
    assert [(Path(row.image.uri).name, row.caption, len(row.alternates)) for row in rows if row.image] == [
        ("a.jpg", b"with ending", 0),
        ("b.jpg", b"own", 0),
        ("c.jpg", b"of the jpg", 0),
        ("c.png", b"of the png", 0),
        (f"{nfd}.jpg", b"composed", 0),
        ("d.HEIC", b"of both", 1),
        ("e.jpg.jpg", b"own stem", 0),
        ("g.JPG", b"in another case", 0),
        ("h.JPG", None, 1),
    ]
    assert rows[1].fields == {"license": "cc0"}
    assert tally.passed_over == {PassedOver.EXTRA_TEXT: 1, PassedOver.NO_PICTURE: 2}
    assert tally.holds() and tally.seen == len(texts)
