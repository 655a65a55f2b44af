"""Invariant: every entry of a listing becomes a row or part of a row, or is counted as passed over, with a reason.

Oracles: `os.walk(followlinks=True)` for folders; `tarfile` for the members of a tar and their bytes; GNU tar for
headers that `tarfile` misunderstands. The grouping of members into samples is compared with webdataset's in
tests/integration/test_law_listing_webdataset.py.
"""

import glob
import io
import itertools
import json
import os
import re
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.listing import list_path
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.corpus.folders import folder_rows
from pairmill.pipeline.source.corpus.index import MAX_PICTURES
from pairmill.pipeline.source.corpus.tar_members import members
from pairmill.pipeline.source.corpus.tars import tar_rows
from pairmill.pipeline.source.files import SourceError, list_inputs
from pairmill.pipeline.source.plan import load_plan, make_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.passed_over import PassedOver, Tally
from pairmill.schemas.record import JobRecord

FOLDERS = ["a", "b", "_c", ".d"]
ENDINGS = ["jpg", "JPG", "heic", "txt", "json", "caption", "md", "cls"]
NAMES = [*(f"{stem}.{ending}" for stem in ("0", "_1", ".2", "x y") for ending in ENDINGS), "README", ".DS_Store"]

trees = st.lists(
    st.tuples(
        st.lists(st.sampled_from(FOLDERS), max_size=3),
        st.sampled_from(NAMES),
        st.sampled_from(["file", "file", "file", "link", "broken", "pipe", "up", "across"]),
    ),
    min_size=1,
    max_size=12,
)


def plant(root: Path, tree: list[tuple[list[str], str, str]]) -> None:
    """Make a folder of files, links and pipes. `up` links point to their own folder, `across` links out of `root`."""
    (root / "0.jpg").write_bytes(b"picture")
    outside = root.parent / "outside"
    (outside / "deep").mkdir(parents=True, exist_ok=True)
    (outside / "far.png").write_bytes(b"far")
    (outside / "deep" / "deeper.png").write_bytes(b"deeper")
    for folders, name, kind in tree:
        folder = root.joinpath(*folders)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue
        path = folder / name
        if os.path.lexists(path):
            continue
        match kind:
            case "file":
                path.write_bytes(b'{"caption": "x"}')
            case "link":
                path.symlink_to(root / "0.jpg")
            case "broken":
                path.symlink_to(root / "nowhere")
            case "pipe":
                os.mkfifo(path)
            case "up":
                path.symlink_to(folder)
            case "across":
                path.symlink_to(outside)


def walked(root: Path) -> tuple[set[str], set[str]]:
    """(files, everything else) that `os.walk` yields. The walk does not descend into hidden folders or loops."""
    files, others = set(), set()
    for folder, names, leaves in os.walk(root, followlinks=True):
        real = Path(os.path.realpath(folder))
        above = {str(real), *(str(each) for each in real.parents)}
        entered = []
        for name in names:
            path = f"{folder}/{name}"
            if name.startswith(".") or os.path.realpath(path) in above:
                others.add(f"{path}/")
            else:
                entered.append(name)
        names[:] = entered
        for name in leaves:
            path = f"{folder}/{name}"
            (files if Path(path).is_file() and not name.startswith(".") else others).add(path)
    return files, others


@given(trees)
def test_a_listing_has_the_same_entries_as_os_walk(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[list[str], str, str]]
) -> None:
    root = tmp_path_factory.mktemp("walk") / "in"
    root.mkdir()
    plant(root, tree)
    listing = list_path(str(root), Files())
    files, others = walked(root)
    assert (set(listing.files), set(listing.passed_over)) == (files, others)
    assert len(listing.files) == len(files)


def planned(output: Path, source: Path, **settings: Any) -> Plan:
    values = {"source": {"paths": [str(source)], "kind": "corpus", **settings}, "output": str(output)}
    values["models"] = [{"name": "tiny"}]  # type: ignore[assignment]
    make_plan(JobRecord(BuildJob.model_validate(values), "f" * 32), Store(str(output)))
    return load_plan(Store(str(output)))


@settings(max_examples=settings.default.max_examples // 5)  # each example makes a plan
@given(trees)
def test_each_entry_of_a_folder_of_pictures_is_a_row_or_part_of_a_row_or_passed_over(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[list[str], str, str]]
) -> None:
    root = tmp_path_factory.mktemp("pictures")
    (root / "in").mkdir()
    plant(root / "in", tree)
    plan = planned(root / "out", root / "in")
    files, others = walked(root / "in")
    assert plan.seen == len(files) + len(others)
    assert plan.seen == plan.num_rows + plan.parts + sum(plan.passed_over.values())
    stems = {path.rpartition(".")[0] for path in files if path.lower().endswith((".jpg", ".heic", ".png"))}
    assert plan.num_rows == len(stems)
    assert set(plan.passed_over) <= {reason.value for reason in PassedOver}


LINKED = {
    "Hugging Face's cache": ("snapshots/rev", "blobs", True),
    "a folder in that cache": ("snapshots/rev/train/0", "blobs", True),
    "another folder of the source": ("source/a", "source/.git/annex", True),
    "its own folder": ("source", "source/sub", True),
    "outside the source": ("source/a", "other", False),
    "blobs of another repository": ("other/a", "blobs", False),
    "a folder of blobs that is itself a link": ("snapshots/rev", "blobs", False),
}


@pytest.mark.parametrize("kind", LINKED)
def test_a_caption_is_read_through_a_link_only_within_the_source_or_the_cache(tmp_path: Path, kind: str) -> None:
    """A link to a picture can point anywhere, because its target must decode as a picture. But any file, even a private
    key, can be read as a caption."""
    folder, target, is_read = LINKED[kind]
    (tmp_path / folder).mkdir(parents=True)
    if "itself a link" in kind:
        (tmp_path / "secret").mkdir()
        (tmp_path / target).symlink_to(tmp_path / "secret")
    else:
        (tmp_path / target).mkdir(parents=True)
    for name, text in (("0.jpg", "x"), ("0.txt", "a cat")):
        (tmp_path / target / f"hash-{name[-3:]}").write_text(text)
        (tmp_path / folder / name).symlink_to(
            os.path.relpath(tmp_path / target / f"hash-{name[-3:]}", tmp_path / folder)
        )
    source = tmp_path / "source" if folder.startswith("source") else tmp_path / folder
    names = [("0.jpg", 1), ("0.txt", 5)]
    (row,) = folder_rows(str(tmp_path / folder), names, False, Files(), sources=[str(source), "s3://a/b"])
    assert row.image is not None
    assert (row.caption == b"a cat", row.problem is None) == (is_read, is_read)


def test_links_that_multiply_each_other_are_bounded_and_counted(tmp_path: Path) -> None:
    """Twenty folders, each with two links to the next, make half a million paths to the last folder."""
    for number in range(20):
        (tmp_path / f"in/{number}").mkdir(parents=True)
        for way in "ab" if number < 19 else "":
            (tmp_path / f"in/{number}/{way}").symlink_to(tmp_path / f"in/{number + 1}")
    (tmp_path / "in/19/0.jpg").write_bytes(b"x")
    listing = list_path(str(tmp_path / "in"), Files())
    assert len(listing.files) == 16
    assert PassedOver.MANY_LINKS in listing.passed_over.values()


@pytest.mark.parametrize("target", ["0.jpg", "1.jpg/x", "x" * 300], ids=["itself", "through a file", "too long"])
def test_a_broken_link_is_passed_over_whatever_error_the_system_reports(tmp_path: Path, target: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.jpg").write_bytes(b"x")
    (tmp_path / "in/0.jpg").symlink_to(target)
    listing = list_path(str(tmp_path / "in"), Files())
    assert listing.files == [str(tmp_path / "in/1.jpg")]
    assert listing.passed_over == {str(tmp_path / "in/0.jpg"): PassedOver.BROKEN_LINK}
    plan = planned(tmp_path / "out", tmp_path / "in")
    assert (plan.num_rows, plan.passed_over) == (1, {PassedOver.BROKEN_LINK.value: 1})


def test_the_listing_does_not_depend_on_the_order_in_which_the_system_lists_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If links give a folder too many paths, the order determines which of them are listed, and a resumed run must list
    the same paths."""
    (tmp_path / "in/z").mkdir(parents=True)
    (tmp_path / "in/z/0.jpg").write_bytes(b"x")
    for number in range(30):
        (tmp_path / f"in/{number:02d}").symlink_to("z")
    first = list_path(str(tmp_path / "in"), Files())
    assert PassedOver.MANY_LINKS in first.passed_over.values()
    scandir = os.scandir

    @contextmanager
    def reversed_scandir(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            yield iter(sorted(entries, key=lambda each: each.name, reverse=True))

    listings = []
    for order in (scandir, reversed_scandir):
        monkeypatch.setattr("os.scandir", order)
        listings.append(list_path(str(tmp_path / "in"), Files()))
    assert listings == [first, first]


@pytest.mark.parametrize("name", [b"lang=\xff/a.csv", b"\xff/a.csv", b"\xff.csv"])
def test_a_list_whose_name_is_not_utf8_is_rejected_with_a_one_line_message(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"in", name)  # noqa: PTH118
    os.makedirs(os.path.dirname(path))  # noqa: PTH103, PTH120
    with open(path, "wb") as file:
        file.write(b"url\nhttp://e.org/1\n")
    job = BuildJob.model_validate({"source": {"paths": [str(tmp_path / "in")]}, "output": str(tmp_path / "out")})
    with pytest.raises(SourceError, match=r"in/.*\ufffd.*: the name is not UTF-8; rename it"):
        make_plan(JobRecord(job, "f" * 32), Store(str(tmp_path / "out")))


@settings(deadline=None)
@given(
    name=st.sampled_from(["a::b", "zip::b", "s3:x", "a[1]", "[", "a#b?c", "a%20b", "~", "*", "a=b", " a "])
    | st.text("a:.[]*?#%~= é", min_size=1, max_size=6).filter(lambda name: not name.startswith("."))
)
def test_a_file_or_folder_of_any_name_is_found_and_its_name_is_unchanged_on_s3(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """fsspec mistakes `::` for a chain of file systems, and brackets for a pattern (filesystem_spec#838)."""
    root = tmp_path_factory.mktemp("names")
    (root / name).mkdir()
    (root / name / f"{name}.csv").touch()
    for path in (root / name, root / name / f"{name}.csv"):
        assert list_path(str(path), Files()).files == [str(root / name / f"{name}.csv")]
    assert Store(str(root / name)).create("x", b"x")
    assert Files().file_system(f"s3://bucket/{name}/x")[1] == f"bucket/{name}/x"


def test_the_output_folder_and_table_logs_are_passed_over_even_through_links(tmp_path: Path) -> None:
    for name in ("in/a.parquet", "in/_b.parquet", "in/_delta_log/0.parquet", "out/pairs/0.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    listing = list_path(str(tmp_path / "in"), Files(), str(tmp_path / "out"))
    assert [Path(file).name for file in listing.files] == ["_b.parquet", "a.parquet"]
    assert set(listing.passed_over.values()) == {PassedOver.TABLE_LOG, PassedOver.OUTPUT}


def test_a_glob_that_matches_a_folder_lists_it(tmp_path: Path) -> None:
    for name in ("00000/0.jpg", "00001/deep/0.jpg", ".hidden/0.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert len(list_path(f"{tmp_path}/*", Files()).files) == 2


@pytest.mark.parametrize("pattern", ["a**/x.csv", "**.csv", "***"])
@pytest.mark.parametrize("root", ["{tmp_path}", "memory://globs"])
def test_a_glob_with_two_stars_in_part_of_a_name_is_refused_with_its_path(
    tmp_path: Path, root: str, pattern: str
) -> None:
    """fsspec raises ValueError."""
    path = f"{root.format(tmp_path=tmp_path)}/{pattern}"
    with pytest.raises(SourceError, match=rf"^source.paths: no input found at {re.escape(path)}: `\*\*` must be"):
        list_inputs([path], "/nowhere", Files())


GLOB_PARTS = st.sampled_from(["a", "b", ".a", ".b", "_temporary"])
PATTERNS = ["*", "*/*", "**/*", "*/a", "**/a", ".a/*", ".*", ".*/*", "*/.a", "**/.*", "[!x]*/*", "?a/*", "a/**/*"]


@given(st.lists(st.tuples(GLOB_PARTS, GLOB_PARTS, GLOB_PARTS), min_size=1, max_size=8), st.sampled_from(PATTERNS))
@example([("a", "b", "a"), (".a", "b", "a"), ("a", ".a", "a"), ("a", "b", ".a")], "**/*")
@settings(deadline=None)
def test_a_glob_matches_the_same_files_as_in_python_and_all_other_files_are_counted(
    names: list[tuple[str, str, str]], pattern: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for parts in names:
            path = Path(folder, *(f"{part}{depth}" for depth, part in enumerate(parts)))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (Path(folder) / "_temporary/a").mkdir(parents=True)
        (Path(folder) / "_temporary/a/a").touch()
        known = {each for each in glob.glob(f"{folder}/{pattern}", recursive=True) if Path(each).is_file()}  # noqa: PTH207
        try:
            listing = list_path(f"{folder}/{pattern}", Files())
        except FileNotFoundError:
            assert not known - {f"{folder}/_temporary/a/a"}
            return
        assert set(listing.named) == {each for each in known if "/_temporary/" not in each}
        assert set(listing.passed_over.values()) <= {PassedOver.HIDDEN, PassedOver.TABLE_LOG}
        assert set(listing.files).isdisjoint(listing.passed_over)


TYPES = {
    "file": tarfile.REGTYPE,
    "old": tarfile.AREGTYPE,
    "contiguous": tarfile.CONTTYPE,
    "folder": tarfile.DIRTYPE,
    "pipe": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
    "hard": tarfile.LNKTYPE,
    "symbolic": tarfile.SYMTYPE,
    "volume": b"V",
}
MEMBERS = ["0.jpg", "0.txt", "0.json", "1.jpg", "1.heic", "._1.jpg", "1.txt", "d/2.jpg", "d/2.caption", "x", "x.cls"]
tar_members = st.lists(
    st.tuples(
        st.sampled_from([*MEMBERS, "n" * 120 + "/3.jpg"]),
        st.sampled_from([*TYPES, "file", "file", "file"]),
        st.sampled_from(MEMBERS),
        st.binary(max_size=20),
        st.sampled_from([{}, {}, {"comment": "x" * 70_000}, {"SCHILY.xattr.user.a": "é"}]),
    ),
    min_size=1,
    max_size=10,
)


def packed(entries: list[tuple[str, str, str, bytes, dict[str, str]]], tar_format: int) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tar_format) as tar:
        for name, kind, link, body, headers in entries:
            info = tarfile.TarInfo(name)
            info.type, info.pax_headers = TYPES[kind], headers
            if kind in ("hard", "symbolic"):
                info.linkname = link
            has_body = kind in ("file", "old", "contiguous")
            info.size = len(body) if has_body else 0
            tar.addfile(info, io.BytesIO(body) if has_body else None)
    return data.getvalue()


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    try:
        opened = tar.extractfile(member)
        return None if opened is None else opened.read()
    except (KeyError, RecursionError):
        return None


@given(tar_members, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_each_member_that_tarfile_finds_is_a_row_or_part_of_a_row_or_passed_over(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, str, str, bytes, dict[str, str]]],
    tar_format: int,
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(data := packed(entries, tar_format))
    tally = Tally()
    rows = list(tar_rows(str(path), Files(), tally))
    with tarfile.open(path) as tar:
        known = tar.getmembers()
        readable = Counter(content(tar, each) for each in known if each.name.lower().endswith((".jpg", ".heic")))
    assert tally.holds()
    assert tally.seen == len(known)
    assert tally.rows == len(rows)
    pictures = Counter(
        data[image.offset : image.offset + image.length]
        for row in rows
        for image in ([row.image] if row.image else []) + list(row.alternates)
    )
    assert not pictures - readable  # tarfile reads a picture with the same bytes for each of them


@given(tar_members, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_names_types_and_positions_of_members_match_tarfile(
    entries: list[tuple[str, str, str, bytes, dict[str, str]]], tar_format: int
) -> None:
    data = packed(entries, tar_format)
    found = list(members(io.BytesIO(data), len(data)))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        known = tar.getmembers()
    assert [(each.name, each.type, each.link) for each in found] == [(m.name, m.type, m.linkname) for m in known]
    assert [(each.offset, each.size) for each in found if each.is_file] == [
        (m.offset_data, m.size) for m in known if m.isreg()
    ]


@given(st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(0, 130)), min_size=1, max_size=4))
@example([(0, 5), (1_700_000_000, 5), (-5, 5), (2**34, 5), (1_700_000_000, 130)])
@settings(max_examples=settings.default.max_examples // 4, deadline=None)
def test_names_in_an_incremental_archive_match_gnu_tar(entries: list[tuple[int, int]]) -> None:
    """`tar --listed-incremental` writes times into the header where `tarfile` expects part of the name."""
    with tempfile.TemporaryDirectory() as folder:
        source, archive = Path(folder, "in"), Path(folder, "a.tar")
        source.mkdir()
        for number, (accessed, length) in enumerate(entries):
            for ending in ("jpg", "txt"):
                path = source / f"{number}{'x' * length}.{ending}"
                path.write_text("caption")
                os.utime(path, (accessed + (ending == "txt"), 0))
        options = ["--format=gnu", "--sort=name", "--atime-preserve=replace", f"--listed-incremental={folder}/state"]
        subprocess.run(["tar", "-cf", archive, *options, "-C", source, "."], check=True)
        listed = subprocess.run(["tar", "-tf", archive], check=True, capture_output=True, text=True).stdout.split()
        with archive.open("rb") as file:
            assert [each.name for each in members(file, archive.stat().st_size)] == [
                name.rstrip("/") for name in listed
            ]
        assert {row.caption for row in tar_rows(str(archive), Files())} == {b"caption"}


ODD_MEMBERS = {
    "GNU sparse": ("0.bmp", tarfile.GNUTYPE_SPARSE, {}),
    "pax 1.0 sparse": (
        "GNUSparseFile.1/0.bmp",
        tarfile.REGTYPE,
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "0.bmp", "GNU.sparse.realsize": "9"},
    ),
    "of an unknown type": ("0.jpg", b"Q", {}),
    "a device": ("0.jpg", tarfile.BLKTYPE, {}),
    "a hard link to nothing": ("0.jpg", tarfile.LNKTYPE, {}),
    "with large attributes": ("0.jpg", tarfile.REGTYPE, {"LIBARCHIVE.xattr.a": "A" * 3_000_000}),
}


@pytest.mark.parametrize("kind", ODD_MEMBERS)
def test_an_odd_member_affects_no_other_member(tmp_path: Path, kind: str) -> None:
    name, member_type, headers = ODD_MEMBERS[kind]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (each, body) in enumerate([("a.jpg", b"A"), ("a.txt", b"first"), (name, b""), ("c.jpg", b"C")]):
            info = tarfile.TarInfo(each)
            info.size = len(body)
            if number == 2:
                info.type, info.pax_headers, info.linkname = member_type, headers, "gone"
            tar.addfile(info, io.BytesIO(body))
    tally = Tally()
    rows = {row.key: row for row in tar_rows(str(tmp_path / "a.tar"), Files(), tally)}
    assert (rows["a"].problem, rows["a"].caption, rows["c"].problem) == (None, b"first", None)
    assert tally.holds()
    assert tally.seen == 4
    assert ("0" in rows) != bool(tally.passed_over)


@given(tar_members, st.data())
def test_damage_affects_only_the_member_that_it_touches(
    entries: list[tuple[str, str, str, bytes, dict[str, str]]], data: st.DataObject
) -> None:
    """A member after the damage is still found if its header is intact."""
    entries = [(name, kind, link, body, {}) for name, kind, link, body, _ in entries if len(name) < 100]
    assume(len(entries) > 1)
    whole = packed(entries, tarfile.GNU_FORMAT)
    before = list(members(io.BytesIO(whole), len(whole)))
    hit = data.draw(st.integers(0, len(before) - 1))
    damaged = bytearray(whole)
    damaged[before[hit].position + 3] ^= 0xFF
    after = list(members(io.BytesIO(bytes(damaged)), len(damaged)))
    assert [each for each in after if not each.is_gap] == [each for each in before if each is not before[hit]]
    assert sum(each.is_gap for each in after) == 1


def _header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def _padded(body: bytes) -> bytes:
    return body + bytes(-len(body) % tarfile.BLOCKSIZE)


def test_a_size_in_a_pax_header_does_not_apply_to_a_header_before_its_member() -> None:
    size, name = b"13 size=1024\n", b"long.jpg\0"
    data = _header("pax", len(size), tarfile.XHDTYPE) + _padded(size)
    data += _header("name", len(name), tarfile.GNUTYPE_LONGNAME) + _padded(name)
    data += _header("short.jpg", 1_024) + b"x" * 1_024 + _header("b.jpg", 3) + _padded(b"abc") + bytes(1_024)
    found = [(each.name, each.offset, each.size) for each in members(io.BytesIO(data), len(data))]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert found == [(each.name, each.offset_data, each.size) for each in tar.getmembers()]


MAGICS = {"V7": bytes(8), "POSIX": b"ustar\x0000", "GNU": b"ustar  \0"}
FIELDS = {"size": 124, "user": 108, "time": 136, "major": 329, "prefix": 345, "magic": 257}


def _odd(name: str, body: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: bytes) -> bytes:
    """A member whose name is cut to 100 bytes, with other bytes in some fields of its header."""
    block = bytearray(_header(name[:100], len(body), kind, "a" if kind in b"12" else ""))
    for field, value in fields.items():
        block[FIELDS[field] : FIELDS[field] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + _padded(body)


def _named(name: str, way: str) -> bytes:
    """A header that contains the full name of the next member."""
    kind, data = (tarfile.GNUTYPE_LONGNAME, f"{name}\0") if way == "GNU" else (tarfile.XHDTYPE, f"999 path={name}\n")
    data = data.replace("999", str(len(data)))
    return _header("name", len(data), kind) + _padded(data.encode())


def odd_members() -> Iterator[bytes]:
    """Members that GNU tar lists without a complaint."""
    cut = "y" * 99 + "/"
    for kind, magic, body in itertools.product((b"0", b"\0"), MAGICS.values(), (b"", b"data")):
        yield from (_odd(name, body, kind, magic=magic) for name in ("d/m", "d/m/", cut))
        for way, name in itertools.product(("GNU", "pax"), (f"{cut}k.jpg", "y" * 120, "y" * 120 + "/")):
            yield _named(name, way) + _odd(name, body, kind, magic=magic)
    yield from (_odd("m", b"data", kind) for kind in (b"2", b"3", b"4", b"6", b"7", b"D"))
    yield from (_odd("m", b"data", size=size) for size in (b"\x80" + bytes(10) + b"\4", b"\0" + b"0" * 10 + b"4"))
    yield from (_odd("m", b"data", size=size) for size in (b"4           ", b"           4", b"4 junk      "))
    yield _odd("m", b"data", magic=bytes(8), prefix=b"behind the header of V7")
    yield _odd("m", b"data", magic=bytes(8), major=b"\xff\xfejunk")
    yield _odd("m", b"data", magic=MAGICS["POSIX"], prefix=b"a/b")


def test_odd_headers_are_understood_as_in_gnu_tar(tmp_path: Path) -> None:
    data = b"".join(odd + _odd(f"{number}.jpg", b"x") for number, odd in enumerate(odd_members())) + bytes(1_024)
    (tmp_path / "a.tar").write_bytes(data)
    listed = subprocess.run(["tar", "-tvf", tmp_path / "a.tar"], check=True, capture_output=True, text=True)
    assert not listed.stderr
    known = [
        (line[0], re.split(" -> ", line.split(maxsplit=5)[5])[0].rstrip("/")) for line in listed.stdout.splitlines()
    ]
    letters = {b"0": "-", b"\0": "-", b"7": "C", b"5": "d", b"2": "l", b"3": "c", b"4": "b", b"6": "p", b"D": "d"}
    found = list(members(io.BytesIO(data), len(data)))
    assert [("!" if each.is_gap else letters[each.type], each.name) for each in found] == known


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_a_member_of_a_type_without_data_may_have_a_size_and_may_have_data(kind: bytes) -> None:
    """POSIX allows the size and forbids the data. GNU tar expects data after some of these types."""
    endless = _odd("m", b"data", kind, size=b"\x80" + b"\xff" * 11)
    for odd in (_odd("m", b"data", kind), *(each[: tarfile.BLOCKSIZE] for each in (_odd("m", b"data", kind), endless))):
        data = _odd("a.jpg", b"x") + odd + _odd("b.jpg", b"x") + bytes(1_024)
        assert [each.name for each in members(io.BytesIO(data), len(data))] == ["a.jpg", "m", "b.jpg"]
    data = endless + _odd("b.jpg", b"x") + bytes(1_024)
    assert [each.name for each in members(io.BytesIO(data), len(data))] == ["m", "", "b.jpg"]  # with a gap


def test_a_member_is_found_although_its_owner_or_time_is_not_a_number() -> None:
    data = _odd("a.jpg", b"x", user=b"nobody\0") + _odd("b.jpg", b"x", time=b"yesterday\0") + bytes(1_024)
    assert [each.name for each in members(io.BytesIO(data), len(data))] == ["a.jpg", "b.jpg"]


class _Counting(io.BytesIO):
    num_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.num_bytes += len(data)
        return data


def test_a_tar_with_damage_everywhere_is_read_only_a_few_times() -> None:
    data = (_header("a.jpg") + b"\1" * tarfile.BLOCKSIZE) * 2_000
    file = _Counting(data)
    found = list(members(file, len(data)))
    assert (sum(not each.is_gap for each in found), sum(each.is_gap for each in found)) == (2_000, 2_000)
    assert file.num_bytes < 10 * len(data)


def test_links_to_a_name_that_many_members_share_are_resolved_quickly(tmp_path: Path) -> None:
    """Each of 5,000 hard links is followed by 5,000 members with its target's name. A linear search would visit
    members 25,000,000 times."""
    links = b"".join(_header(f"{number}.jpg", 0, tarfile.LNKTYPE, "z.jpg") for number in range(5_000))
    bodies = b"".join(_header("z.jpg", 3) + _padded(b"%3d" % number) for number in range(3))
    (tmp_path / "a.tar").write_bytes(bodies + links + _header("z.jpg") * 5_000 + bytes(1_024))
    start = time.process_time()
    rows = list(tar_rows(str(tmp_path / "a.tar"), Files()))
    assert time.process_time() - start < 3
    last = 2 * 1_024 + tarfile.BLOCKSIZE  # the last of the three members before the links
    assert {row.image.offset for row in rows[3:5_003] if row.image} == {last}


def test_the_number_of_members_remembered_for_links_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairmill.pipeline.source.corpus.tar_members._MAX_REMEMBERED_BYTES", 2_000)
    data = b"".join(_header(name, 1) + _padded(b"x") for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"))
    data += _header("e.jpg", 0, tarfile.SYMTYPE, "a.jpg") + _header("f.jpg", 0, tarfile.SYMTYPE, "d.jpg")
    (tmp_path / "a.tar").write_bytes(data + bytes(1_024))
    rows = {row.key: row for row in tar_rows(str(tmp_path / "a.tar"), Files())}
    assert rows["e"].image == rows["a"].image
    assert rows["f"].problem == "f.jpg: a link to d.jpg, which is not among the first 3 members of the tar"


def test_a_key_with_many_pictures_is_one_row_with_a_limited_number_of_alternates(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"".join(_header(f"a.{number}.jpg") for number in range(1_000)) + bytes(1_024))
    tally = Tally()
    (row,) = tar_rows(str(tmp_path / "a.tar"), Files(), tally)
    assert len(row.alternates) == MAX_PICTURES - 1
    assert (tally.rows, tally.parts) == (1, 999)


stems = st.from_regex(r"[a-z]{1,2}(\.[0-9a-z]{1,3}){0,2}", fullmatch=True)


@given(st.lists(stems, min_size=1, max_size=12, unique=True), st.sampled_from(["txt", "json"]), st.booleans())
def test_pairs_whose_names_contain_dots_keep_their_own_captions(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], ending: str, is_sorted: bool
) -> None:
    """WebDataset's key ends at the first dot, so `photo.1.jpg`, `photo.1.txt`, `photo.2.jpg` and so on would all be one
    sample (webdataset#237, datasets#6880). The oracle is the file names, which all have a dot or all have none."""
    names = [name for name in names if ("." in name) == ("." in names[0])]
    tar = b""
    for name in sorted(names) if is_sorted else names:
        text = json.dumps({"caption": name}) if ending == "json" else name
        tar += _header(f"{name}.jpg", len(name)) + _padded(name.encode())
        tar += _header(f"{name}.{ending}", len(text)) + _padded(text.encode())
    path = tmp_path_factory.mktemp("dots") / "a.tar"
    path.write_bytes(tar + bytes(1_024))
    tally = Tally()
    rows = list(tar_rows(str(path), Files(), tally))
    data = path.read_bytes()
    pictures = [data[row.image.offset :][: row.image.length].decode() for row in rows if row.image]
    captions = [(row.caption or b"").decode() for row in rows]
    assert sorted(captions) == sorted(pictures) == sorted(names)
    assert pictures == captions
    assert (tally.rows, tally.parts) == (len(names), len(names))
    shared = Counter(name.partition(".")[0] for name in names)
    if is_sorted:
        keys = [name if shared[name.partition(".")[0]] > 1 else name.partition(".")[0] for name in pictures]
        assert [row.key for row in rows] == keys


def test_the_picture_and_the_text_that_are_named_like_the_key_come_first(tmp_path: Path) -> None:
    """open_clip's trainer reads `jpg;png;jpeg;webp` and `txt` from a sample (open_clip_train/data.py)."""
    names = ["a.depth.png", "a.first.txt", "a.jpg", "a.meta.json", "a.seg.png", "a.txt"]
    texts = {"a.meta.json": b'{"caption": "json"}'}
    bodies = {name: texts.get(name, name.encode()) for name in names}
    tar = b"".join(_header(name, len(body)) + _padded(body) for name, body in bodies.items())
    (tmp_path / "a.tar").write_bytes(tar + bytes(1_024))
    (row,) = tar_rows(str(tmp_path / "a.tar"), Files())
    assert row.image is not None
    assert tar[row.image.offset :][: row.image.length] == b"a.jpg"
    assert (row.key, row.caption, len(row.alternates)) == ("a", b"a.txt", 2)


def test_a_build_counts_the_files_that_are_not_lists_of_urls(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    pq.write_table(pa.table({"url": ["http://e.org/1"]}), tmp_path / "in/deep/_a.parquet")
    for name in ("stats.json", "notes.md", ".hidden.parquet"):
        (tmp_path / "in" / name).touch()
    plan = planned(tmp_path / "out", tmp_path / "in", kind="urls")
    assert (plan.seen, plan.num_rows) == (4, 1)
    assert plan.passed_over == {PassedOver.HIDDEN: 1, PassedOver.OTHER_KIND: 2}


def test_the_plan_counts_members_and_files_and_inputs_without_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/a.tar", "w") as tar:
        for name in ("a.jpg", "a.txt", "._a.jpg", "notes.md"):
            tar.addfile(tarfile.TarInfo(name))
    with tarfile.open(tmp_path / "in/b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(".hidden"))
    for name in ("00000_stats.json", ".DS_Store"):
        (tmp_path / "in" / name).touch()
    plan = planned(tmp_path / "out", tmp_path / "in")
    assert (plan.seen, plan.num_rows, plan.parts) == (7, 1, 1)
    assert plan.passed_over == {PassedOver.HIDDEN: 3, PassedOver.OTHER_KIND: 2}
    assert planned(tmp_path / "out", tmp_path / "in").passed_over == plan.passed_over  # no entry is counted twice
