"""Tests purges of exports that are damaged, unfinished or moved. `test_purge.py` tests intact exports."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count, groupby
from pathlib import Path
from typing import IO, Any, Literal
from uuid import uuid4

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from embedding_reader import EmbeddingReader
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
from pairmill.jobs.report import _write_local
from pairmill.pipeline.common.storage import StorageError, Store
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record
from pairmill.pipeline.export.readme import purged_readme
from pairmill.pipeline.export.uid_array import sorted_uids
from pairmill.schemas.errors import JobError, PairmillError
from pairmill.schemas.export import ExportedPart, ExportFormat
from tests.committed_shards import pair, uid_of, write_dataset
from tests.unit.purge.conftest import World
from tests.unit.purge.test_purge import Killed, kill_at, marks_of
from tests.unit.purge.world import EXPORTS, grep


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()  # the file is a hard link, so it must not be changed in place
    path.write_bytes(data[: len(data) // 2])


def _check_readme(export: Store) -> None:
    """The README describes the parts as their manifests do; otherwise, `datasets` would return cached rows."""
    parts = list[ExportedPart]()
    for name in export.list(".pairmill/manifests"):
        with suppress(DamagedManifestError):
            parts.append(read_record(export, f".pairmill/manifests/{name}", ExportedPart, ""))
    text = export.read("README.md").decode()
    assert text == purged_readme(text, parts)
    assert f"{sum(part.rows for part in parts)} pairs of pictures" in text


@pytest.mark.parametrize(
    ("damage", "files"),
    [
        (_cut, ["tars/00001.tar", "tables/00000.parquet", "arrays/img_emb/img_emb_0000.npy", "pool/subset.npy"]),
        (Path.unlink, ["tars/00000.tar", "tables/00002.parquet", "arrays/metadata/metadata_0000.parquet"]),
        (_cut, [f"{name}/.pairmill/manifests/00001.json" for name in EXPORTS]),
        (_cut, ["pool/metadata/00000.npz", *(f"{name}/.pairmill/export.json" for name in ("tars", "arrays"))]),
        (Path.unlink, ["pool/subset.npy", *(f"{name}/.pairmill/export.json" for name in ("tars", "arrays"))]),
    ],
)
def test_a_damaged_export_is_named_and_does_not_keep_a_purge_from_finishing(
    world: World, damage: Callable[[Path], None], files: list[str]
) -> None:
    for name in files:
        damage(world.root / name)
    gone = [1, 5, 17, 24, 40]
    uids = world.write("uids.txt", [world.source.uid(row) for row in gone])
    result = pairmill.purge(world.out, uids=uids, reason="asked for")
    outcomes = {Path(export.output).name: export.outcome for export in result.purged.exports}
    damaged = {name.partition("/")[0] for name in files}
    assert outcomes == {name: "damaged" if name in damaged else "rewritten" for name in EXPORTS}
    marks = marks_of(world.source, gone)
    assert grep(world.out, marks) == []
    for name in EXPORTS.keys() - damaged:
        assert grep(world.root / name, marks) == []
    for name in damaged - {"tables"}:  # Parquet exports have no README
        if f"{name}/.pairmill/export.json" not in files:  # without it, nothing is purged
            _check_readme(Store(str(world.root / name)))
    assert pairmill.purge(world.out).purged.shards == []  # the purge is finished


@pytest.mark.parametrize("form", ["webdataset", "clip-retrieval"])
def test_no_withdrawn_rows_are_left_in_a_killed_export(
    world: World, monkeypatch: pytest.MonkeyPatch, form: ExportFormat
) -> None:
    """Kills an export at each of its writes. Its temporary files remain, named after a process that no longer runs."""
    for name in ("out/exports", *EXPORTS):
        shutil.rmtree(world.root / name)
    real = Store.new_file

    @contextmanager
    def new_file(store: Store) -> Iterator[IO[bytes]]:
        with real(store) as file:
            try:
                yield file
            except Killed:
                file.flush()
                shutil.copy(file.name, Path(store.root, "tmp", f"{socket.gethostname()}!{2**22 + 1}!{uuid4().hex}"))
                raise

    models = "b32" if form == "clip-retrieval" else None
    for last in count():
        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Store, "new_file", new_file)
            kill_at(patch, last)
            pairmill.export(
                world.out, "all", world.root / f"{last:03d}", format=form, samples_per_file=30, models=models
            )
            break
    gone = list(range(30))
    marks = marks_of(world.source, gone)
    assert grep(world.root / "002/tmp", marks)
    uids = world.write("uids.txt", [world.source.uid(row) for row in gone])
    result = pairmill.purge(world.out, uids=uids, reason="asked for")
    for number in range(last + 1):
        assert grep(world.root / f"{number:03d}", marks) == []
    outcomes = [export.outcome for export in sorted(result.purged.exports, key=lambda export: export.output)]
    assert [outcome for outcome, _ in groupby(outcomes)] == ["not found", "unfinished", "rewritten"]


@pytest.mark.parametrize("path", ["nosuch", "out", "in.csv"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_folder_that_is_not_an_export_is_refused_before_anything_changes(
    world: World, path: str, dry_run: bool
) -> None:
    uids = world.write("uids.txt", [world.source.uid(1)])
    with pytest.raises(JobError, match=f"--export {world.root / path}: no export found"):
        pairmill.purge(world.out, uids=uids, reason="x", exports=world.root / path, dry_run=dry_run)
    assert not (world.out / "withdrawn").exists()


def test_a_damaged_note_of_an_export_is_refused_before_anything_changes(world: World) -> None:
    note = next((world.out / "exports").iterdir())
    damaged = note.read_bytes().replace(b'"format"', b'"Format"')
    note.unlink()  # the file may be a hard link
    note.write_bytes(damaged)
    uids = world.write("uids.txt", [world.source.uid(1)])
    with pytest.raises(pairmill.PairmillError, match="is damaged or not pairmill's; move it elsewhere, and pass"):
        pairmill.purge(world.out, uids=uids, reason="x")
    assert not (world.out / "withdrawn").exists()
    pairmill.open(world.out)  # no purge is unfinished


def test_exports_that_cannot_be_purged_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(world.root / "tars", world.root / "moved")
    (world.root / "pool/.pairmill/export.json").unlink()
    (world.root / "pool/.pairmill/export.json").write_text("{")
    uids = world.write("uids.txt", [world.source.uid(1)])
    moved = str(world.root / "moved")
    done = CliRunner().invoke(
        app, ["purge", str(world.out), "--uids", str(uids), "--reason", "asked for", "--export", moved]
    )
    assert done.exit_code == 1  # withdrawn rows may remain in two exports
    note = next(path for path in (world.out / "exports").iterdir() if b"/tars" in path.read_bytes())
    missed = f"export {world.root}/tars: not found; if it was moved, purge it there with --export. If it was deleted or"
    assert f"{missed} purged, delete {note}\n" in done.stdout
    assert f"export {world.root}/pool: damaged; delete it and export again" in done.stdout
    assert f"export {moved}: rewritten: 1 row withdrawn" in done.stdout
    assert grep(world.root / "moved", world.source.marks(1)) == []

    def denied(store: Store, name: str, data: bytes) -> bool:
        raise StorageError(f"{store.path(name)}: access denied")

    real = Store.create
    monkeypatch.setattr(Store, "create", lambda *call: (denied if call[1].startswith("exports/") else real)(*call))
    words = ["export", str(world.out), "all", str(world.root / "new"), "--format", "parquet"]
    done = CliRunner().invoke(app, words)
    assert f"cannot be written to: purge this export with --export {world.root}/new" in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_hugging_face_datasets_never_returns_cached_rows_of_an_earlier_export_or_from_before_a_purge(
    world: World, tmp_path: Path
) -> None:
    def check(names: list[str], expected: set[str]) -> None:
        for name in names:
            rows = datasets.load_dataset(str(world.root / name), cache_dir=str(tmp_path), split="train")
            assert set(rows["__key__" if name in ("tars", "mixed") else "uid"]) == expected, name

    similarities = dict(pairmill.open(world.out).table(["uid", "similarity"]).to_pandas().values)
    pairmill.mix(world.root / "mix", {f"{world.out}:all": 1.0})
    names = [*EXPORTS, "mixed"]
    pairmill.export(world.root / "mix", output=world.root / "mixed", format="webdataset")
    check(names, {*similarities})
    gone = {world.source.uid(row) for row in (1, 5, 17)}
    pairmill.purge(world.out, uids=world.write("uids.txt", sorted(gone)), reason="asked for")
    check(names, similarities.keys() - gone)
    pairmill.select(world.out, "one", steps=["top: {by: similarity, count: 1}"], settings={"partial": True})
    for name, form in EXPORTS.items():
        shutil.rmtree(world.root / name)
        models = "b32" if name in ("arrays", "pool") else None
        pairmill.export(world.out, "one", world.root / name, format=form, models=models)
    check([*EXPORTS], {max(similarities.keys() - gone, key=lambda uid: similarities[uid])})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_readers_open_an_export_of_which_a_purge_emptied_whole_files(world: World, tmp_path: Path) -> None:
    """Hugging Face `datasets` refuses a Parquet file whose first row group has no rows ("BatchSize must be greater than
    0"), and embedding-reader gives the metadata of an array without rows to the next array."""
    gone: set[str] = set()
    for name, form in EXPORTS.items():
        models = "b32" if name in ("arrays", "pool") else None
        output = world.root / f"few {name}"
        pairmill.export(world.out, "all", output, format=form, models=models, samples_per_file=3, in_order=True)
    for part in ("00000", "00002"):
        gone |= {*pq.read_table(world.root / f"few tables/{part}.parquet", columns=["uid"])["uid"].to_pylist()}
    left = {*pairmill.open(world.out).subset("all").table("uid")["uid"].to_pylist()} - gone
    pairmill.purge(world.out, uids=world.write("uids.txt", sorted(gone)), reason="asked for")
    assert all(pq.read_metadata(file).num_rows for file in world.root.glob("few */**/[!.]*.parquet"))
    for name in EXPORTS:
        for streaming in (False, True):
            folder = str(world.root / f"few {name}")
            rows = datasets.load_dataset(folder, cache_dir=str(tmp_path), split="train", streaming=streaming)
            assert {row["__key__" if name == "tars" else "uid"] for row in rows} == left, name
    arrays = world.root / "few arrays"
    more = {"metadata_folder": str(arrays / "metadata"), "meta_columns": ["uid"], "file_format": "parquet_npy"}
    found = list(EmbeddingReader(str(arrays / "img_emb"), **more)(batch_size=5, show_progress=False))
    vectors = {uid: vector for batch, meta in found for uid, vector in zip(meta["uid"], batch.tolist(), strict=True)}
    rows = pairmill.open(world.out).subset("all").rows(["uid", "image_embedding_b32"], pictures=False)
    assert vectors == {row["uid"]: row["image_embedding_b32"].tolist() for row in rows}
    tars = sorted(path.name for path in (world.root / "few tars").glob("*.tar"))
    assert tars == [f"{number:05d}.tar" for number in range(len(tars))]
    assert json.loads((world.root / "few tars/sizes.json").read_text())["00000.tar"] == 0
    again = pairmill.purge(world.out, uids=world.write("more.txt", [min(left)]), reason="asked for, too")
    assert {found.outcome for found in again.purged.exports} == {"rewritten"}


def test_a_killed_purge_that_was_emptying_a_part_is_finished_by_the_next(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = world.root / "few"
    pairmill.export(world.out, "all", few, format="clip-retrieval", models="b32", samples_per_file=3, in_order=True)
    uids = pq.read_table(few / "metadata/metadata_0000.parquet", columns=["uid"])["uid"].to_pylist()
    listed = world.write("uids.txt", uids)
    shutil.copytree(world.root, tmp_path / "saved", copy_function=os.link)

    def purge(last: int) -> list[str]:
        shutil.rmtree(world.root)
        shutil.copytree(tmp_path / "saved", world.root, copy_function=os.link)
        with monkeypatch.context() as patch, suppress(Killed):
            tried = kill_at(patch, last)
            pairmill.purge(world.out, uids=listed, reason="asked for")
        return tried

    def state() -> dict[str, bytes]:
        files = [path for path in few.rglob("*") if path.is_file() and path.parent.name != "removals"]
        return {str(path.relative_to(few)): path.read_bytes() for path in files}

    tried, expected = purge(10**6), state()
    assert "metadata/metadata_0001.parquet" in expected and not any("_0000." in name for name in expected)
    emptying = [number for number, write in enumerate(tried) if write.startswith("delete") and "_0000." in write]
    assert len(emptying) == 3
    for number in (*emptying, emptying[-1] + 1, emptying[-1] + 2):
        purge(number)
        pairmill.purge(world.out)
        assert state() == expected, tried[number]


@pytest.mark.parametrize("form", ["webdataset", "parquet", "datacomp", "report", "report elsewhere"])
def test_a_purge_at_any_moment_of_an_export_or_report_leaves_no_withdrawn_row_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Literal[ExportFormat, "report", "report elsewhere"]
) -> None:
    """The purge runs before each write in turn. If the other command fails, it says that this is because of the
    purge."""
    vectors = {"image_embedding_tiny": [1.0, 0.0], "text_embedding_tiny": [0.0, 1.0]}
    rows = [[pair(f"the long caption of row {shard}, {row}", 0.3, **vectors) for row in range(3)] for shard in range(2)]
    write_dataset(tmp_path / "saved/out", rows)
    pairmill.select(tmp_path / "saved/out", "all")
    root, uids = tmp_path / "root", tmp_path / "uids.txt"
    uids.write_text(uid_of(0, 1))
    marks = [uid_of(0, 1).encode(), b"row 0, 1", int(uid_of(0, 1)[:16], 16).to_bytes(8, "little")]
    purged = {"left": -1}

    def purge_first(write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*given: Any) -> Any:
            purged["left"] -= 1
            if not purged["left"]:
                pairmill.purge(root / "out", uids=uids, reason="asked for")
            return write(*given)

        return written

    for name in ("create", "create_from", "replace"):
        monkeypatch.setattr(Store, name, purge_first(getattr(Store, name)))
    monkeypatch.setattr("pairmill.jobs.report._write_local", purge_first(_write_local))
    for moment in range(1, 60):
        shutil.copytree(tmp_path / "saved", root)
        purged["left"] = moment
        try:
            if form == "report":
                pairmill.report(root / "out")
            elif form == "report elsewhere":
                (root / "link.html").symlink_to(root / "made.html")
                pairmill.report(root / "out", out=root / "link.html")
            else:
                pairmill.export(root / "out", "all", root / "made", format=form, samples_per_file=2)
        except PairmillError as error:
            assert "a purge has begun in the meantime" in str(error)
        if is_over := purged["left"] > 0:
            break
        assert grep(root, marks) == []
        shutil.rmtree(root)
    assert is_over
    assert moment > (1 if "report" in form else 8)


def test_an_export_that_finds_nothing_to_do_leaves_the_files_of_a_purge_beside_it_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = {"image_embedding_tiny": [1.0, 0.0], "text_embedding_tiny": [0.0, 1.0]}
    write_dataset(tmp_path / "out", [[pair(f"row {row}", 0.3, **vectors) for row in range(3)]])
    pairmill.select(tmp_path / "out", "all")
    (tmp_path / "uids.txt").write_text(uid_of(0, 1))

    def then_purge(*given: Any) -> Any:
        uids = sorted_uids(*given)
        pairmill.purge(tmp_path / "out", uids=tmp_path / "uids.txt", reason="asked for")
        return uids

    def export() -> None:
        pairmill.export(tmp_path / "out", "all", tmp_path / "made", format="datacomp")

    export()
    monkeypatch.setattr("pairmill.jobs.export.sorted_uids", then_purge)
    with pytest.raises(JobError, match="a purge has begun in the meantime"):
        export()
    assert len(np.load(tmp_path / "made" / "subset.npy")) == 2
