"""Tests the search index against brute force in NumPy: whole, grown shard by shard, after retries, and with subsets."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
from pairmill.pipeline.check.search_indexes import check_indexes
from pairmill.pipeline.common.progress import ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.output_folder import check_dataset_folder
from pairmill.pipeline.reader.embeddings import Embeddings, EmbeddingsError
from pairmill.pipeline.search import index as search_index
from pairmill.pipeline.search import part_files, vector_index
from pairmill.pipeline.search.build_index import IndexReport, build_index
from pairmill.pipeline.search.errors import SearchError
from pairmill.pipeline.search.index import SearchIndex
from pairmill.pipeline.search.matches import subset_mask
from pairmill.schemas.errors import JobError
from pairmill.schemas.index import IndexPart
from tests.records import values_of
from tests.unit.search.vectors import (
    ALIAS,
    DIM,
    SHARD_ROWS,
    Floats,
    add_embeddings,
    brute_force,
    is_missing,
    make_dataset,
    retry,
    snapshot,
    vectors_of,
)
from tests.unit.select.conftest import make_subset

SHARDS = 12


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("original") / "out", SHARDS)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test can change."""
    return Path(shutil.copytree(original, tmp_path / "out"))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use parts of four shards, and never search without an index."""
    monkeypatch.setattr(part_files, "PART_ROWS", 4 * SHARD_ROWS)
    monkeypatch.setattr(search_index, "MAX_UNINDEXED_ROWS", 0)


@pytest.fixture
def many_lists(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Divide the vectors into lists, as in the index of a large dataset."""
    monkeypatch.setattr(vector_index, "FLAT_ROWS", 100)
    yield


def queries(n: int = 20) -> Floats:
    return vectors_of(1_000, 0, n)


def build(folder: Path) -> IndexReport:
    return build_index(Embeddings.of(snapshot(folder), ALIAS))


def opened(folder: Path) -> SearchIndex:
    return SearchIndex.open(Store(str(folder)), snapshot(folder), ALIAS)


def found(folder: Path, k: int = 10) -> list[list[int]]:
    rows, scores = opened(folder).search(queries(), k)
    assert (np.diff(scores, axis=1) <= 0).all()
    return rows.tolist()


def recall(rows: list[list[int]], truth: list[list[int]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows, truth, strict=True)]))


def test_small_datasets_without_an_index_are_searched_exactly(folder: Path) -> None:
    index = opened(folder)
    assert index.is_exact
    assert found(folder) == brute_force(folder, queries(), 10)
    assert not (folder / "index").exists()


def test_a_flat_index_equals_brute_force_and_its_scores_are_cosines(folder: Path, small_parts: None) -> None:
    assert build(folder).parts == 3
    index = opened(folder)
    rows, scores = index.search(5 * queries(), 10)
    assert rows.tolist() == brute_force(folder, queries(), 10)
    stored = np.concatenate([vectors_of(shard) for shard in range(SHARDS)]).astype(np.float16).astype(np.float32)
    assert np.allclose(scores, np.einsum("nd,nkd->nk", queries(), stored[rows]), atol=1e-5)
    norms = np.linalg.norm(stored[rows].astype(np.float64), axis=2)
    assert (np.abs(scores - np.einsum("nd,nkd->nk", queries(), stored[rows]) / norms) < 0.0005).all()  # as documented


def test_rows_without_an_embedding_are_counted_and_never_found(folder: Path, small_parts: None) -> None:
    missing = np.concatenate([is_missing(shard) for shard in range(SHARDS)])
    report = build(folder)
    assert (report.rows, report.rows - report.embeddings) == (SHARDS * SHARD_ROWS, missing.sum())
    index = opened(folder)
    assert index.num_rows - index.num_embeddings == missing.sum() > 0
    rows, scores = index.search(queries(1), SHARDS * SHARD_ROWS)
    assert sorted(rows[0][rows[0] >= 0].tolist()) == np.flatnonzero(~missing).tolist()
    assert (rows[0][-missing.sum() :] == -1).all()
    assert np.isneginf(scores[0][-missing.sum() :]).all()


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_an_embedding_with_nan_or_of_zeros_counts_as_missing(folder: Path, value: float) -> None:
    vectors = vectors_of(0)
    missing = is_missing(0)
    bad = int(np.flatnonzero(~missing)[0])
    vectors[bad, 3 if value else slice(None)] = value
    add_embeddings(folder, 0, 0, vectors)
    index = opened(folder)
    assert index.num_rows - index.num_embeddings == sum(int(is_missing(each).sum()) for each in range(SHARDS)) + 1
    assert bad not in index.search(vectors_of(0)[bad][None], 100)[0]
    uid = pq.read_table(folder / "pairs/000000000.parquet", columns=["uid"])["uid"][bad].as_py()
    with pytest.raises(JobError, match="has no embedding of its picture"):
        pairmill.search(folder, uid=uid)


def test_an_incremental_index_equals_a_rebuilt_one(
    tmp_path: Path, folder: Path, small_parts: None, many_lists: None
) -> None:
    grown = make_dataset(tmp_path / "grown", 3)
    assert build(grown).parts_built == 1
    for shards, built, removed in ((6, 2, 1), (6, 0, 0), (SHARDS, 2, 1)):
        report = build(make_dataset(grown, shards))
        assert (report.parts_built, report.parts_removed) == (built, removed)
    build(folder)
    assert found(grown) == found(folder)
    assert parts(grown) == parts(folder)
    assert recall(found(grown), brute_force(grown, queries(), 10)) > 0.6


def parts(folder: Path) -> list[tuple[str, int]]:
    """For each part, the name without the attempt, and the number of lists."""
    records = part_files.read_parts(Store(str(folder)), f"index/{ALIAS}-image")
    files = {path.name for path in (folder / f"index/{ALIAS}-image").glob("*.faiss")}
    assert files == {part.file.path.rpartition("/")[2] for part in records.values()}
    return sorted((stem, part.lists) for stem, part in records.items())


def test_a_retry_replaces_only_its_part(folder: Path, small_parts: None) -> None:
    build(folder)
    before = dict(parts(folder))
    retry(folder, 5)
    with pytest.raises(SearchError, match=r"57 rows not in an index; run `pairmill index .* --model vec`"):
        opened(folder)
    report = build(folder)
    assert (report.parts, report.parts_removed) == (4, 1)  # 207 rows are too many for one part
    assert len(before.keys() & dict(parts(folder)).keys()) == 2
    assert found(folder) == brute_force(folder, queries(), 10)


def test_shards_that_are_in_no_part_or_have_a_newer_generation_are_searched_too(
    folder: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(folder)
    monkeypatch.setattr(search_index, "MAX_UNINDEXED_ROWS", 1_000)
    retry(folder, 2)
    make_dataset(folder, SHARDS + 2)
    assert found(folder) == brute_force(folder, queries(), 10)
    assert opened(folder).num_rows == (SHARDS + 2) * SHARD_ROWS + 7


def test_an_old_part_beside_its_successor_is_ignored(folder: Path, small_parts: None) -> None:
    build(folder)
    shutil.copytree(folder / "index", folder / "old")
    retry(folder, 5)
    build(folder)
    shutil.copytree(folder / "old", folder / "index", dirs_exist_ok=True)
    assert found(folder) == brute_force(folder, queries(), 10)


@pytest.mark.parametrize("share", [0.5, 0.02, 0.0])
def test_only_allowed_rows_are_found(folder: Path, small_parts: None, many_lists: None, share: float) -> None:
    build(folder)
    allowed = np.random.default_rng(3).random(SHARDS * SHARD_ROWS) < share
    rows, _ = opened(folder).search(queries(), 10, allowed)
    truth = brute_force(folder, queries(), 10, allowed)
    assert allowed[rows[rows >= 0]].all()
    assert [sum(row >= 0 for row in each) for each in rows.tolist()] == [len(each) for each in truth]
    if share == 0.02:  # so few rows are allowed that all lists are read
        assert [[row for row in each if row >= 0] for each in rows.tolist()] == truth


def test_a_subset_can_be_searched_alone(folder: Path) -> None:
    make_subset(folder, "wide", {"where": "width > 500"})
    mask = subset_mask(snapshot(folder), "wide")
    rows, _ = opened(folder).search(queries(), 10, mask)
    assert rows.tolist() == brute_force(folder, queries(), 10, mask)
    assert 0 < mask.sum() < SHARDS * SHARD_ROWS


def test_an_interrupted_run_is_resumed_and_leaves_no_files_behind(
    folder: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, made = Store.create, 0

    def dies(store: Store, name: str, data: bytes) -> bool:
        nonlocal made
        made += 1
        if made == 2:
            raise KeyboardInterrupt
        return create(store, name, data)

    with monkeypatch.context() as context:
        context.setattr(Store, "create", dies)
        with pytest.raises(KeyboardInterrupt):
            build(folder)
    assert len(list((folder / f"index/{ALIAS}-image").glob("*.faiss"))) == 2  # one of them without a manifest
    report = build(folder)
    assert (report.parts, report.parts_built) == (3, 2)
    parts(folder)
    check_dataset_folder(Store(str(folder)))


def test_a_damaged_part_is_named_with_the_remedy(folder: Path, small_parts: None) -> None:
    build(folder)
    part = next((folder / f"index/{ALIAS}-image").glob("*.faiss"))
    data = part.read_bytes()
    foreign = vector_index.VectorIndex.empty(2 * DIM, 1, np.zeros((0, 2 * DIM), np.float16))
    foreign.write(str(folder / "foreign"))
    for damaged in (b"junk" + data[4:], (folder / "foreign").read_bytes().ljust(len(data), b"\0")):
        part.write_bytes(damaged)
        with pytest.raises(SearchError, match=r"delete .*index/vec-image and run `pairmill index .*` again"):
            opened(folder)
    part.write_bytes(data.replace(np.int64(4 * SHARD_ROWS - 1).tobytes(), np.int64(10**6).tobytes()))
    with pytest.raises(SearchError, match="an index file is damaged: delete the folder index/"):
        opened(folder).search(queries(), SHARDS * SHARD_ROWS)


@pytest.mark.parametrize("damage", ["bytes", "short", "gone", "record", "elsewhere"])
def test_verify_finds_a_damaged_index_and_its_remedy_works(folder: Path, small_parts: None, damage: str) -> None:
    build(folder)
    store = Store(str(folder))
    assert list(check_indexes(store, ignore_step)) == []
    file, record = sorted(folder.glob("index/*/*.faiss"))[0], sorted(folder.glob("index/*/manifests/*.json"))[0]
    match damage:
        case "bytes":
            file.write_bytes(file.read_bytes()[:-1] + b"?")
        case "short":
            file.write_bytes(file.read_bytes()[:-1])
        case "gone":
            file.unlink()
        case "record":
            record.write_text("{")
        case "elsewhere":
            record.write_text(record.read_text().replace(f"index/{file.parent.name}/", "../"))
    (problem,) = check_indexes(store, ignore_step)
    assert ("delete it" in problem) == (damage in ("bytes", "short"))  # only files that pairmill certainly wrote
    (command,) = re.findall("run `pairmill (.*?)` again", problem)
    if "delete it" in problem:
        store.delete(problem.partition(" has changed")[0])
    if "move it elsewhere" in problem:
        record.unlink()
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0, done.output
    assert list(check_indexes(store, ignore_step)) == []


def test_incomplete_or_missing_parts_are_rebuilt(folder: Path, small_parts: None) -> None:
    build(folder)
    short, gone, _ = (folder / f"index/{ALIAS}-image").glob("*.faiss")
    short.write_bytes(short.read_bytes()[:1_000])
    with pytest.raises(SearchError, match=r"is incomplete: run `pairmill index .* --model vec` again"):
        opened(folder)
    gone.unlink()
    report = build(folder)
    assert (report.parts, report.parts_built, report.parts_removed) == (3, 2, 0)
    assert found(folder) == brute_force(folder, queries(), 10)
    parts(folder)


def test_a_file_that_a_killed_run_left_is_deleted_after_an_hour_even_if_its_shards_have_changed(
    folder: Path, small_parts: None
) -> None:
    build(folder)
    name = next((folder / f"index/{ALIAS}-image").glob("*.faiss")).name
    left = folder / f"index/{ALIAS}-image" / f"{name[:10]}{'0' * 16}.{'0' * 32}.faiss"
    for age_s, stays in ((60, True), (4_000, False)):
        left.write_bytes(b"x")
        os.utime(left, (time.time() - age_s,) * 2)
        build(folder)
        assert left.exists() == stays


def test_a_record_that_names_a_file_elsewhere_deletes_nothing_there(folder: Path, small_parts: None) -> None:
    build(folder)
    record = next((folder / f"index/{ALIAS}-image/manifests").iterdir())
    part = IndexPart.model_validate(values_of(record))
    pairs = part.file.model_copy(update={"path": "pairs/000000000.parquet"})
    pairs = pairs.model_copy(update={"num_bytes": (folder / pairs.path).stat().st_size})
    outdated = record.with_name(f"{record.name[:10]}{'0' * 16}.json")
    outdated.write_text(part.model_copy(update={"file": pairs}).model_dump_json())
    assert build(folder).parts_removed == 1
    assert not outdated.exists()
    assert (folder / pairs.path).exists()


def test_a_search_among_many_vectors_is_approximate_with_exact_scores() -> None:
    rng = np.random.default_rng(0)
    vectors = vectors_of(0, 0, 120_000, 32).astype(np.float16)
    index = vector_index.VectorIndex.empty(32, len(vectors), vectors[:: len(vectors) // 40_000])
    index.add(vectors, np.arange(len(vectors)))
    assert index.lists > 100
    some = vectors[rng.choice(len(vectors), 50)].astype(np.float32) + 0.05 * rng.standard_normal((50, 32), np.float32)
    exact = some @ vectors.astype(np.float32).T
    best = np.argsort(-exact, axis=1)
    for k in (10, 10_000):
        ids, scores = index.search(some, k)
        assert recall(ids.tolist(), best[:, :k].tolist()) >= 0.98
        assert np.allclose(scores, np.take_along_axis(exact, ids, axis=1), atol=1e-4)


@pytest.mark.parametrize("num_embeddings", [0, 1, 90, 300])
def test_all_embeddings_of_a_large_part_with_few_of_them_are_found(num_embeddings: int) -> None:
    vectors = vectors_of(0, 0, 300)[:num_embeddings].astype(np.float16)
    index = vector_index.VectorIndex.empty(DIM, 150_000, vectors)
    index.add(vectors, np.arange(num_embeddings) * 500)
    ids, _ = index.search(queries(1), 300)
    assert sorted(ids[ids >= 0].tolist()) == [500 * number for number in range(num_embeddings)]


def test_rows_outside_the_searched_lists_are_found_if_the_lists_have_too_few_rows(many_lists: None) -> None:
    """Most vectors fall into a few lists, and the query is far from these lists."""
    vectors = np.concatenate([vectors_of(0, 0, 30), 1e-3 * vectors_of(1, 0, 470) + vectors_of(2, 0, 1)])
    vectors = vectors.astype(np.float16)
    index = vector_index.VectorIndex.empty(DIM, len(vectors), vectors)
    index.add(vectors, np.arange(len(vectors)))
    assert index.lists > 1
    ids, _ = index.search(-vectors[-1:].astype(np.float32), 400)
    assert (ids >= 0).all()
    ids, _ = index.search(-vectors[-1:].astype(np.float32), 600)
    assert sorted(ids[ids >= 0].tolist()) == list(range(len(vectors)))


def test_the_record_of_a_part_lists_the_shards_it_covers(folder: Path, small_parts: None) -> None:
    build(folder)
    (name, *_) = sorted((folder / f"index/{ALIAS}-image/manifests").iterdir())
    part = IndexPart.model_validate(values_of(name))
    assert [(shard.shard, shard.generation) for shard in part.shards] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert (part.dim, part.lists, part.num_rows) == (DIM, 1, 4 * SHARD_ROWS)


def test_a_missing_model_is_an_error(folder: Path) -> None:
    with pytest.raises(EmbeddingsError, match="has no model 'b32'; it has: vec"):
        Embeddings.of(snapshot(folder), "b32")
    with pytest.raises(EmbeddingsError, match="no embeddings of 'txt', only of: image, text"):
        Embeddings.of(snapshot(folder), ALIAS, "txt")  # type: ignore[arg-type]
    (folder / f"columns/{ALIAS}/manifests/{0:09d}.json").unlink()
    with pytest.raises(EmbeddingsError, match="has no embeddings"):
        Embeddings.of(snapshot(folder), None)
