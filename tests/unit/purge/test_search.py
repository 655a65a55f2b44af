"""Tests that `verify --purged` finds leftovers anywhere, that `gc` deletes only files that nothing needs, and the
effects of purges on scores, trainers and shards without rows."""

import bz2
import gzip
import io
import json
import lzma
import shlex
import shutil
import tarfile
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

import pairmill
from pairmill.jobs import select as select_module
from pairmill.jobs.cli.main import app
from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.columns.score_card import ScoreCard, State, write_state
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import publish_manifest
from pairmill.pipeline.dataset.manifests import ManifestError, read_manifests
from pairmill.pipeline.dataset.subset import SubsetError, publish, read_subset
from pairmill.pipeline.dataset.withdrawn import UnfinishedPurgeError
from pairmill.pipeline.feed.config import FeedConfig, FeedError
from pairmill.pipeline.feed.pair_dataset import PairDataset
from pairmill.pipeline.purge import unpack
from pairmill.pipeline.purge.ledger import write_request
from pairmill.pipeline.purge.windows import BLOCK_BYTES, windows
from pairmill.schemas.errors import JobError
from tests.synthetic_dataset import write_dataset
from tests.unit.purge.conftest import World
from tests.unit.purge.test_purge import marks_of
from tests.unit.purge.world import EXPORTS, Source, grep

GONE = 1


def _parquet(path: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), path)


def _tar(path: Path, name: str, data: bytes) -> None:
    """Write a tar with an old member, at which `tarfile` stops reading (cpython#141707), and another member."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        old = tarfile.TarInfo(f"{'x' * 99}/x.md")
        old.type, old.size = tarfile.AREGTYPE, 1
        tar.addfile(old, io.BytesIO(b"x"))
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _faiss(path: Path, vector: bytes) -> None:
    dim = len(vector) // 2
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(np.zeros((1, dim), np.float32))
    index = faiss.IndexIVFScalarQuantizer(quantizer, dim, 1, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    index.add(np.frombuffer(vector, np.float16)[None].astype(np.float32))
    faiss.write_index(index, str(path))


def _vectors(data: bytes) -> pa.Array:
    kind = pa.list_(pa.field("element", pa.float16(), nullable=False), len(data) // 2)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.frombuffer(data, np.float16)), type=kind)


def _zip(path: Path, name: str, data: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)


def _packed_tar(path: Path, name: str, data: bytes) -> None:
    _tar(path, name, data)
    path.write_bytes(gzip.compress(path.read_bytes()))


PLANTED: dict[str, Callable[[Path, Source], None]] = {
    "stray.parquet": lambda path, source: _parquet(path, uid=[source.uid(GONE)]),
    "nested.parquet": lambda path, source: _parquet(path, x=[[{"y": source.url(GONE).replace("https", "HTTPS")}]]),
    "caption.parquet": lambda path, source: _parquet(path, text=[source.caption(GONE)]),
    "bytes.parquet": lambda path, source: _parquet(path, raw=[source.caption(GONE).encode()]),
    "vector.parquet": lambda path, source: _parquet(path, v=_vectors(source.vector(1, GONE))),
    "added.parquet": lambda path, source: _parquet(path, v=_vectors(source.vector(2, GONE))),
    "picture.parquet": lambda path, source: _parquet(path, image=[source.picture(GONE)]),
    "a.tar": lambda path, source: _tar(path, "x.jpg", source.picture(GONE)),
    "b.tar": lambda path, source: _tar(path, f"{source.uid(GONE)}.cls", b"1"),
    "c.tar": lambda path, source: _tar(path, "x.txt", source.caption(GONE).encode()),
    "page.html": lambda path, source: path.write_text(f"<p title='x'>{source.caption(GONE)}</p>"),
    "link.html": lambda path, source: path.write_text(f"<a href={source.url(GONE)}?>x</a>".replace("?>", ">")),
    "notes.json": lambda path, source: path.write_text(json.dumps({"x": [source.url(GONE)]}).replace("/", "\\/")),
    ".hidden": lambda path, source: path.write_text(str(uuid.UUID(source.uid(GONE))).upper()),
    "a.txt.gz": lambda path, source: path.write_bytes(gzip.compress(source.caption(GONE).encode())),
    "a.bz2": lambda path, source: path.write_bytes(bz2.compress(source.url(GONE).encode())),
    "a.xz": lambda path, source: path.write_bytes(lzma.compress(source.uid(GONE).encode())),
    "a.zst": lambda path, source: path.write_bytes(pa.compress(source.uid(GONE).encode(), "zstd", asbytes=True)),
    "a.zip": lambda path, source: _zip(path, "x.json", json.dumps(f'"{source.caption(GONE)}').encode()),
    "a.tar.gz": lambda path, source: _packed_tar(path, "x.jpg", source.picture(GONE)),
    "long.txt": lambda path, source: path.write_text(f"{'x ' * BLOCK_BYTES}\n{source.caption(GONE)}\n{'x ' * 99_999}"),
    "x.faiss": lambda path, source: _faiss(path, source.vector(0, GONE)),
    "state.safetensors": lambda path, source: save_file(
        {"vectors": np.frombuffer(source.vector(3, GONE), np.float16)[None].copy()}, path
    ),
    "uids.safetensors": lambda path, source: save_file(
        {"uids": np.array([[int(source.uid(GONE)[:16], 16), int(source.uid(GONE)[16:], 16)]], np.uint64)}, path
    ),
}


def test_leftovers_in_any_form_are_found(world: World) -> None:
    """Each planted file contains one value of a purged row, each in a different form."""
    source = world.source
    lists = [world.write("uids.txt", [source.uid(GONE)]), world.write("urls.txt", [source.url(GONE)])]
    pairmill.purge(world.out, uids=lists[0], reason="asked for")
    every = world.write("every.txt", [source.uid(GONE), source.url(GONE), source.sha256(GONE)])
    clean = CliRunner().invoke(app, ["verify", str(world.out), "--purged", str(every), "--json"])
    assert (clean.exit_code, json.loads(clean.stdout.splitlines()[-1])["found"]) == (0, [])
    for name, plant in PLANTED.items():
        plant(world.out / name, source)
    done = CliRunner().invoke(app, ["verify", str(world.out), "--purged", str(every), "--json"])
    found = json.loads(done.stdout.splitlines()[-1])["found"]
    assert done.exit_code == 1
    assert {line.partition(":")[0] for line in found} == set(PLANTED)


def test_files_that_cannot_be_searched_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command then fails, because files that were not searched prove nothing."""
    uids = world.write("uids.txt", [world.source.uid(1)])
    pairmill.purge(world.out, uids=uids, reason="asked for")
    (world.out / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    (world.out / "b.gz").write_bytes(gzip.compress(b"text" * 100)[:20])
    (world.out / "c.gz").write_bytes(gzip.compress(bytes(2_000)))
    (world.out / "d.parquet").write_bytes(b"PAR1")
    _tar(world.out / "e.tar", "x.jpg", b"x")
    with (world.out / "e.tar").open("r+b") as tar:
        tar.seek(4 * tarfile.BLOCKSIZE)  # the second member; its predecessor has a long name
        tar.write(b"y")
    monkeypatch.setattr(unpack, "MAX_UNPACKED_BYTES", 1_000)
    done = CliRunner().invoke(app, ["verify", str(world.out), "--purged", str(uids), "--json"])
    result = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, result["found"]) == (1, [])
    reasons = ["is packed with 7z", "is damaged", "unpacks to more than 1,000 bytes", "is damaged", "is damaged"]
    names = ("a.7z", "b.gz", "c.gz", "d.parquet", "e.tar")
    for line, name, why in zip(result["unsearched"], names, reasons, strict=True):
        assert line.startswith(f"{name}: {why}")
    assert "not searched: a.7z: is packed with 7z" in done.stderr


@given(st.lists(st.text("ab ", max_size=4), max_size=30), st.integers(1, 9))
def test_windows_contain_exactly_the_words_of_the_text(words: list[str], block: int) -> None:
    text = "\n".join(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairmill.pipeline.purge.windows.BLOCK_BYTES", block)
        made = list(windows(io.BytesIO(text.encode()), 8))
    assert sum(window.num_bytes for window in made) == len(text)
    assert {word for window in made for word in window.text.split()} == set(text.split())
    assert {line for window in made for line in window.inner(window.text.split("\n"))} - {""} == set(words) - {""}


def test_values_shared_with_other_rows_are_not_reported(world: World) -> None:
    """Row 30 has the picture of row 2; only row 2 is withdrawn."""
    source = world.source
    pairmill.purge(world.out, uids=world.write("uids.txt", [source.uid(2)]), reason="asked for")
    done = CliRunner().invoke(app, ["verify", str(world.out), "--purged", str(world.saved.parent / "uids.txt")])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "1 of these captions, pictures and embeddings belong to other rows too, which stay" in done.stdout
    pictures = world.write("sha256.txt", [source.sha256(2)])
    done = CliRunner().invoke(app, ["verify", str(world.out), "--purged", str(pictures)])
    assert done.exit_code == 1  # a search for the digest finds the picture that stays


def test_values_that_rows_share_are_no_leftovers_even_in_columns_older_than_their_pairs(world: World) -> None:
    """A retry writes new pairs, and the columns of the old ones stay until the score is added again. A caption that
    another row only quotes is not shared."""
    store, told = Store(str(world.out)), "words of a model about one picture"
    scores: dict[str, dict[str, object]] = {"told": {"caption_model": {"model": "coca"}}, "kind": {"classes": {}}}
    quote = json.dumps([f"{told}, told"])
    for name, score in scores.items():
        card = ScoreCard(name=name, score=score, columns=[], state=write_state(store, name, State()), versions={})  # type: ignore[arg-type]
        store.create(f"columns/{name}/score.json", card.model_dump_json().encode())
        for manifest in read_manifests(store):
            row_ids = pq.read_table(world.out / manifest.files["pairs"].path, columns=["row_id"])["row_id"]
            values = [f"{told}, {name}" if each == f"0:{GONE}" else quote for each in row_ids.to_pylist()]
            write_columns(store, name, pa.table({"row_id": row_ids, name: values}), manifest, {"score": name}, "f")
    uids = world.write("uids.txt", [world.source.uid(GONE), world.source.uid(2)])
    pairmill.purge(world.out, uids=uids, reason="asked for")
    for manifest in list(read_manifests(store)):
        publish_manifest(store, manifest.model_copy(update={"generation": manifest.generation + 1}))
    for name in scores:
        (world.out / f"{name}.txt").write_text(f"{told}, {name}")
    done = CliRunner().invoke(app, ["verify", str(world.out), "--purged", str(uids), "--json"])
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["found"], result["unsearched"]) == (["told.txt: 1 caption of withdrawn rows"], [])


def test_gc_deletes_only_files_that_nothing_needs(world: World) -> None:
    out = world.out
    kept = {path for path in out.rglob("*") if path.is_file()}
    attempt = "00112233445566778899aabbccddeeff"
    fresh = {  # files that a running job may be about to reference
        out / "columns/words/000000000.parquet": out / f"columns/words/000000000.{attempt}.parquet",
        next((out / "subsets/all/rows").iterdir()): out / "subsets/all/rows/00000.x.parquet",
        next((out / "index/b16-image").glob("*.faiss")): out / "index/b16-image/000000000.x.y.faiss",
    }
    junk = {
        out / "pairs/000000000.parquet": out / f"pairs/000000001.{attempt}.parquet",
        out / "images/000000000.tar": out / f"images/000000002.{attempt}.tar",
    }
    for source, target in (fresh | junk).items():
        shutil.copy(source, target)
    (out / "failures/000000001.txt").write_text("of a shard that is done")
    (out / "pairs/notes.txt").write_text("mine")
    listed = CliRunner().invoke(app, ["gc", str(out), "--dry-run"])
    assert {path for path in out.rglob("*") if path.is_file()} >= {*junk.values(), *kept}
    card = out / "columns/words/score.json"
    before = card.read_bytes()
    card.unlink()
    card.write_bytes(b"{")  # `verify` reports it; what its score needs is unknown
    result = pairmill.gc(out)
    card.write_bytes(before)
    gone = {str(path.relative_to(out)) for path in {*junk.values(), out / "failures/000000001.txt"}}
    assert {file.name for file in result.files} == gone
    assert all(name in listed.stdout for name in gone)
    left = {path for path in out.rglob("*") if path.is_file()}
    assert left == (kept | {*fresh.values()} | {out / "pairs/notes.txt"}) - {out / "failures/000000001.txt"}
    assert pairmill.purge(out, uids=world.write("u.txt", [world.source.uid(1)]), reason="x").purged.rows == 1
    assert not [path for path in fresh.values() if path.exists()]  # no other job writes during a purge


def test_a_score_that_compares_with_a_withdrawn_row_is_deleted_with_its_mixes_and_can_be_restored_as_advised(
    world: World,
) -> None:
    density = "density: {model: b32, neighbors: 2, clusters: 2, sample: 1000}"
    pairmill.score(world.out, "crowd", score=density, settings={"partial": True})
    pairmill.score(world.out, "calm_share", score="mix: 1 - rank(crowd)", settings={"partial": True})
    pairmill.score(world.out, "aaa", score="mix: 2 * calm_share")
    pairmill.score(world.out, "words", score="captions: [words]")
    pairmill.score(world.out, "place", score="mix: rank(similarity)", settings={"partial": True})
    pairmill.score(world.out, "odd", score="captions: [bits_per_character]", settings={"partial": True})
    pairmill.select(world.out, "calm", steps=["where: crowd <= 2"], settings={"partial": True})
    rejected = world.write("uids.txt", [world.source.uid(3)])  # the row has no embedding
    assert pairmill.purge(world.out, uids=rejected, reason="asked for").purged.scores == {}
    uids = world.write("uids.txt", [world.source.uid(1)])
    planned = pairmill.purge(world.out, uids=uids, dry_run=True)
    assert planned.score_shards == dict.fromkeys(["aaa", "calm_share", "crowd", "odd", "place"], 4)
    result = pairmill.purge(world.out, uids=uids, reason="asked for")
    assert planned.purged.scores == result.purged.scores
    assert list(result.purged.scores) == ["crowd", "odd", "place", "calm_share", "aaa"]  # in the order to add them
    assert (world.out / "columns/words/score.json").exists()
    assert not [path for name in result.purged.scores for path in (world.out / "columns" / name).rglob("*.*")]
    assert grep(world.out, marks_of(world.source, [1])) == []
    commands = [shlex.split(each) for each in result.remedies if each.startswith("pairmill score ")]
    for _, *arguments in commands:
        made = CliRunner().invoke(app, [*arguments, "--set", "partial=true"])
        assert made.exit_code == 0, made.output
    assert pairmill.verify(world.out, rescore=0).problems == []


@pytest.mark.parametrize("killed_before", ["score.json", "state."])
def test_a_purge_that_was_killed_while_it_deleted_a_score_is_finished_by_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch, killed_before: str
) -> None:
    density = "density: {model: b32, neighbors: 2, clusters: 2, sample: 1000}"
    pairmill.score(world.out, "crowd", score=density, settings={"partial": True})
    uids, delete = world.write("uids.txt", [world.source.uid(1)]), Store.delete

    def killed(store: Store, name: str) -> None:
        if name.startswith(f"columns/crowd/{killed_before}"):
            raise KeyboardInterrupt
        delete(store, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "delete", killed)
        pairmill.purge(world.out, uids=uids, reason="asked for")
    assert list(pairmill.purge(world.out).purged.scores) == ["crowd"]
    assert not [path for path in (world.out / "columns/crowd").rglob("*") if path.is_file()]


def test_a_purge_refuses_scores_of_which_it_cannot_know_whether_they_contain_the_rows(world: World) -> None:
    uids = world.write("uids.txt", [world.source.uid(1)])
    for name in ("columns/words/score.json", "columns/words/state.*"):
        (path,) = world.out.glob(name)
        before = path.read_bytes()
        path.unlink()
        for dry_run in (True, False):
            with pytest.raises(ManifestError, match=r"run: pairmill score"):
                pairmill.purge(world.out, uids=uids, reason="asked for", dry_run=dry_run)
        path.write_bytes(before)
    pairmill.score(world.out, "more", score="mix: words_words + similarity_b16")
    pairmill.score(world.out, "twice", score="mix: 2 * more")
    shutil.rmtree(world.out / "columns/b16")  # a model's values depend only on the row itself
    assert pairmill.purge(world.out, uids=uids, dry_run=True).purged.scores == {}
    shutil.rmtree(world.out / "columns/more")
    for source in (None, "mix: 3 * words_words"):
        if source:
            pairmill.score(world.out, "more", score=source)
        with pytest.raises(ManifestError, match=r"columns/twice was made from the score 'more', .* delete the folder"):
            pairmill.purge(world.out, uids=uids, reason="asked for", dry_run=True)
    shutil.rmtree(world.out / "columns/twice")
    stray = world.out / f"columns/words/state.{'0' * 32}.safetensors"
    stray.write_bytes(b"from an interrupted command")
    assert pairmill.purge(world.out, uids=uids, reason="asked for").purged.rows == 1
    assert not stray.exists()


def test_a_trainer_is_told_that_the_rows_have_changed(world: World) -> None:
    config = FeedConfig(world.out, "all", columns=("uid",), batch_size=4)
    dataset = PairDataset(config)
    rows = iter(dataset)
    next(rows)
    state = dataset.state_dict()
    pairmill.purge(world.out, uids=world.write("uids.txt", [world.source.uid(1)]), reason="asked for")
    resumed = PairDataset(config)
    with pytest.raises(FeedError, match=r"subset was .* after a retry, a purge or a new selection, the rows are not"):
        resumed.load_state_dict(state)
    resumed.set_epoch(0)
    uids = [uid for batch in resumed for uid in batch["uid"]]
    assert len(set(uids)) == len(uids) == 40
    assert world.source.uid(1) not in uids


def test_only_a_trainer_that_has_already_begun_reads_rows_while_a_purge_is_unfinished(world: World) -> None:
    out, uid = world.out, world.source.uid(1)
    other = world.root / "other"
    write_dataset(other, 20)
    pairmill.mix(world.root / "mix", {str(out): 1.0}, settings={"partial": True})
    running = iter(PairDataset(FeedConfig(out, columns=("uid",), batch_size=4)))
    first = next(running)
    write_request(Store(str(out)), {"uid": frozenset([uid])}, "asked for")
    readers: dict[str, Callable[[], object]] = {
        "open": lambda: pairmill.open(out),
        "train": lambda: PairDataset(FeedConfig(out)),
        "train on a subset": lambda: PairDataset(FeedConfig(out, "all")),
        "train on a mixture": lambda: PairDataset(FeedConfig(world.root / "mix")),
        "report": lambda: pairmill.report(out, out=world.root / "report.html"),
        "compare": lambda: pairmill.report(other, compare=out),
        "known": lambda: pairmill.select(other, "new", steps=[f"known: {{path: {out}, by: sha256}}"]),
        "leak": lambda: pairmill.select(other, "new", steps=[f"leak: {{against: {out}, by: [sha256]}}"]),
    }
    for name, read in readers.items():
        with pytest.raises(UnfinishedPurgeError, match=f"{out}: a purge is not finished; finish it first"):
            pytest.fail(f"{name} read {read()}")
    assert len({each for batch in (first, *running) for each in batch["uid"]}) == 41
    assert pairmill.purge(out).purged.rows == 1
    assert len(pairmill.open(out).table(["uid"])) == 40


def test_all_rows_can_be_purged(world: World) -> None:
    hosts = world.write("hosts.txt", ["example"])
    result = pairmill.purge(world.out, hosts=hosts, reason="the whole web of examples")
    assert (result.purged.rows, result.purged.shards) == (48, [0, 1, 2, 3])
    marks = marks_of(world.source, list(range(60)))
    assert grep(world.out, marks) == []
    assert not [found for name in EXPORTS for found in grep(world.root / name, marks)]
    assert pairmill.verify(world.out, rescore=0).problems == []
    assert len(pairmill.open(world.out).table(["uid"], subset="all")) == 0
    assert result.remedies[1].startswith("pairmill index ")  # not run here, because no rows are left to index


def test_a_subset_outdated_by_a_retry_loses_withdrawn_uids_too(world: World) -> None:
    """The subset refers to an old generation of its shards, so it stays outdated, but without withdrawn uids."""
    store = Store(str(world.out))
    for path in (world.out / "subsets/all/shards").iterdir():
        table = pq.read_table(path)
        index = table.schema.get_field_index("pairs_blake2b")
        table = table.set_column(index, table.schema.field(index), pa.array(["0" * 32] * table.num_rows))
        path.unlink()
        pq.write_table(table, path)
    uid = world.source.uid(1)
    pairmill.purge(world.out, uids=world.write("uids.txt", [uid]), reason="asked for")
    rows = [pq.read_table(path)["uid"].to_pylist() for path in (world.out / "subsets/all/rows").iterdir()]
    assert (len(rows), len(rows[0]), uid in rows[0]) == (1, 40, False)
    subset = read_subset(store, "all")
    assert (subset.rows_out, subset.reports[-1].rows_out) == (40, 40)
    again = pairmill.purge(world.out, uids=world.write("more.txt", [world.source.uid(2)]), reason="too", dry_run=True)
    assert again.subset_rows == {"all": 1, "half": 1}
    with pytest.raises(SubsetError, match="was rebuilt after 'all' was made"):
        PairDataset(FeedConfig(world.out, "all"))
    assert store.exists("subsets/half/selection.json")


def test_a_subset_that_a_purge_has_rewritten_is_kept_if_the_select_that_replaced_it_ends_too_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish_first(*args: object) -> bool:
        is_first = publish(*args)  # type: ignore[arg-type]
        pairmill.purge(world.out, uids=world.write("uids.txt", [world.source.uid(1)]), reason="asked for")
        return is_first

    shutil.rmtree(world.out / "exports")
    before = pairmill.open(world.out).table(["uid"], subset="all")["uid"].to_pylist()
    monkeypatch.setattr(select_module, "publish", publish_first)
    with pytest.raises(JobError, match="a purge has begun in the meantime"):
        pairmill.select(world.out, "all", refresh=True)
    after = pairmill.open(world.out).table(["uid"], subset="all")["uid"].to_pylist()
    assert after == [uid for uid in before if uid != world.source.uid(1)]
    assert pairmill.verify(world.out, rescore=0).problems == []


@pytest.mark.parametrize("moment", ["chunks_of", "_write_overlaps", "publish"])
def test_a_select_fails_and_leaves_nothing_behind_if_a_purge_begins_while_it_runs(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    go_on = getattr(select_module, moment)

    def purge_first(*args: object) -> object:
        before = go_on(*args) if moment == "chunks_of" else None  # from the old files
        pairmill.purge(world.out, uids=world.write("uids.txt", [world.source.uid(1)]), reason="asked for")
        return before or go_on(*args)

    monkeypatch.setattr(select_module, moment, purge_first)
    with pytest.raises(JobError, match="a purge has begun in the meantime; run the command again"):
        pairmill.select(world.out, "during", steps=["where: width > 0"], settings={"partial": True})
    assert not [path for path in (world.out / "subsets/during").rglob("*") if path.is_file()]
    assert grep(world.out, marks_of(world.source, [1])) == []


def test_subsets_whose_steps_name_withdrawn_values_are_listed(world: World) -> None:
    """Only the user can change the steps, so `verify` finds the values until the subsets are selected again."""
    source = world.source
    texts = {
        "by_url": f"url != '{source.url(1)}'",
        "by_host": "not contains(url, '.elsewhere.example/')",
        "by_uid": f"uid != '{source.uid(2).upper()}'",
        "by_sha256": f"sha256 not in ['{source.sha256(4)}']",
        "by_nothing": "sha256 != '0' and url != 'https://pictures.example/'",
    }
    for name, text in texts.items():
        pairmill.select(world.out, name, steps=[f"where: {text}"], settings={"partial": True})
    lists = {
        "urls": world.write("urls.txt", [source.url(1)]),
        "hosts": world.write("hosts.txt", ["elsewhere.example"]),
        "uids": world.write("uids.txt", [source.uid(2)]),
        "sha256": world.write("sha256.txt", [source.sha256(4)]),
    }
    result = pairmill.purge(world.out, **lists, reason="asked for")  # type: ignore[arg-type]
    assert result.purged.named_in_steps == sorted(texts.keys() - {"by_nothing"})
    for name in result.purged.named_in_steps:
        pairmill.select(world.out, name, steps=["where: similarity >= 0"], settings={"partial": True}, overwrite=True)
    assert pairmill.purge(world.out).purged.named_in_steps == []
    assert grep(world.out, [source.url(1).encode(), b"elsewhere.example", source.sha256(4).encode()]) == []
