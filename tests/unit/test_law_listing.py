"""Law: everything that a listing shows becomes a row or part of a row, or counts as "passed over" with a reason.

Oracles: `os.walk(followlinks=True)` for folders, `tarfile` for the members of a tar and their bytes. The grouping of
members into samples is compared with webdataset's in tests/integration/test_law_listing_webdataset.py.
"""

import io
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.listing import list_path
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.corpus.tar_members import members
from pairmill.pipeline.source.corpus.tars import tar_rows
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
    """Make a folder of files, links and pipes; `up` links lead to folders above them, `across` to ones outside."""
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
    """(files, everything else) that `os.walk` shows, ending the walk at hidden folders and loops."""
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
def test_a_listing_shows_what_os_walk_shows(
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


@settings(max_examples=settings.default.max_examples // 5)  # each makes a plan
@given(trees)
def test_each_entry_of_a_folder_of_pictures_is_a_row_a_part_or_passed_over(
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


def test_links_that_multiply_each_other_are_bounded_and_counted(tmp_path: Path) -> None:
    """Twenty folders, each with two links to the next: a million ways to the last one."""
    for number in range(20):
        (tmp_path / f"in/{number}").mkdir(parents=True)
        for way in "ab" if number < 19 else "":
            (tmp_path / f"in/{number}/{way}").symlink_to(tmp_path / f"in/{number + 1}")
    (tmp_path / "in/19/0.jpg").write_bytes(b"x")
    listing = list_path(str(tmp_path / "in"), Files())
    assert len(listing.files) == 16
    assert PassedOver.MANY_LINKS in listing.passed_over.values()


def test_the_output_folder_and_the_logs_of_tables_are_passed_over_under_any_name(tmp_path: Path) -> None:
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
def test_each_member_that_tarfile_shows_is_a_row_a_part_or_passed_over(
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
    assert not pictures - readable  # only bytes that tarfile reads too, from members of that name


@given(tar_members, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_names_types_and_bytes_of_members_are_those_of_tarfile(
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


ODD_MEMBERS = {
    "sparse, GNU": ("0.bmp", tarfile.GNUTYPE_SPARSE, {}),
    "sparse, pax 1.0": (
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
def test_one_odd_member_costs_at_most_itself(tmp_path: Path, kind: str) -> None:
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
def test_damage_costs_at_most_the_members_that_it_touches(
    entries: list[tuple[str, str, str, bytes, dict[str, str]]], data: st.DataObject
) -> None:
    """A member after the damage is found again if its header is intact."""
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


def test_a_build_counts_the_files_that_are_not_lists_of_urls(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    pq.write_table(pa.table({"url": ["http://e.org/1"]}), tmp_path / "in/deep/_a.parquet")
    for name in ("stats.json", "notes.md", ".hidden.parquet"):
        (tmp_path / "in" / name).touch()
    plan = planned(tmp_path / "out", tmp_path / "in", kind="urls")
    assert (plan.seen, plan.num_rows) == (4, 1)
    assert plan.passed_over == {PassedOver.HIDDEN: 1, PassedOver.OTHER_KIND: 2}


def test_the_plan_counts_members_and_files_and_what_has_no_rows(tmp_path: Path) -> None:
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
    assert planned(tmp_path / "out", tmp_path / "in").passed_over == plan.passed_over  # nothing to add
