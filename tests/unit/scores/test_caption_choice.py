"""Tests which captions exports and the feed return: the original ones, generated ones, or the better of the two."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import distributed
from torch.testing._internal.distributed import fake_pg as fake_pg  # registers the backend `fake`

from pairmill.jobs.export import export
from pairmill.jobs.select import select
from pairmill.pipeline.columns.caption_choice import CaptionChoiceError
from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.columns.score_card import SCORE_CARD, ScoreCard, ScoreColumn, State, write_state
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.feed.config import FeedConfig, FeedError
from pairmill.pipeline.feed.pair_dataset import PairDataset
from pairmill.pipeline.score.kinds import kind_of
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.job.scores import ScoreConfig
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.subset import SelectJob
from tests.committed_shards import pair, reject, write_dataset
from tests.records import values_of

ROWS: list[tuple[str, float, str | None, float | None, str, float | None]] = [
    # original caption, its similarity, generated caption, its similarity, better caption, its similarity
    ("a dog", 0.2, "a brown dog", 0.3, "a brown dog", 0.3),
    ("a cat", 0.3, "an animal", 0.2, "a cat", 0.3),
    ("a bird", 0.25, "a red bird", 0.25, "a bird", 0.25),
    ("a car", 0.25, None, None, "a car", 0.25),
    ("a boat", 0.25, "a boat at sea", None, "a boat", 0.25),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captions") / "out"
    embedding = {"image_embedding_tiny": [1.0, 0.0], "text_embedding_tiny": [0.0, 1.0]}
    rows = [pair(caption, similarity, **embedding) for caption, similarity, *_ in ROWS]
    store = write_dataset(root, [[*rows, reject("gone")]])
    _add(store, "coca", "tiny")
    select(SelectJob.model_validate({"dataset": str(root), "name": "all", "steps": []}))
    return root


def _add(store: Store, name: str, similarity: str | None, raised_by: float = 0.0) -> None:
    """Add the generated captions of ROWS as a score. `raised_by`: how much higher their similarities are."""
    score = ScoreConfig.model_validate({"caption_model": {"model": "a", "similarity": similarity}})
    schema = kind_of(name, score).schema
    columns = [ScoreColumn(name=field.name, type=str(field.type)) for field in schema]
    card = ScoreCard(name=name, score=score, columns=columns, state=write_state(store, name, State()), versions={})
    store.create(f"columns/{name}/{SCORE_CARD}", card.model_dump_json().encode())
    manifest = read_manifest(store, manifest_name(0, 0))
    captions, similarities = [row[2] for row in ROWS], [None if row[3] is None else row[3] + raised_by for row in ROWS]
    table = pa.table([captions, similarities][: len(schema)], schema=schema)
    table = table.append_column("row_id", pa.array([f"0:{number}" for number in range(len(ROWS))]))
    write_columns(store, name, table, manifest, {"score": name}, card.fingerprint)


EXPECTED: dict[str, list[tuple[str, float | None]]] = {
    "original": [row[:2] for row in ROWS],
    "coca": [row[:2] if row[2] is None else (row[2], row[3]) for row in ROWS],
    "best": [row[4:] for row in ROWS],
}


def _same(found: list[tuple[Any, Any]], caption: str) -> bool:
    expected = EXPECTED[caption]
    return sorted(text for text, _ in found) == sorted(text for text, _ in expected) and {
        text: None if value is None else pytest.approx(value) for text, value in expected
    } == dict(found)


def _export(dataset: Path, output: Path, form: str, caption: str) -> Path:
    values = {"dataset": str(dataset), "subset": "all", "output": str(output), "format": form, "caption": caption}
    export(ExportJob.model_validate(values))
    return output


@pytest.mark.parametrize("caption", EXPECTED)
def test_tars_and_parquet_have_the_chosen_captions(dataset: Path, tmp_path: Path, caption: str) -> None:
    tar, found = _export(dataset, tmp_path / "tar", "webdataset", caption) / "00000.tar", []
    with tarfile.open(tar) as members:
        data = {member.name: members.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    for name, body in data.items():
        if name.endswith(".json"):
            detail = json.loads(body)
            assert data[name.replace(".json", ".txt")].decode() == detail["caption"]
            found.append((detail["caption"], detail["similarity_tiny"]))
    assert _same(found, caption)
    rows = pq.read_table(_export(dataset, tmp_path / "parquet", "parquet", caption) / "00000.parquet").to_pylist()
    assert _same([(row["caption"], row["similarity_tiny"]) for row in rows], caption)
    assert _same([(row["caption_clean"], row["similarity"]) for row in rows], caption)
    assert [row["coca"] for row in sorted(rows, key=lambda row: int(row["row_id"][2:]))] == [row[2] for row in ROWS]


@pytest.mark.parametrize("caption", EXPECTED)
def test_text_embedding_arrays_are_left_out_unless_captions_are_original(
    dataset: Path, tmp_path: Path, caption: str
) -> None:
    output = _export(dataset, tmp_path / "cr", "clip-retrieval", caption)
    rows = pq.read_table(output / "metadata/metadata_0000.parquet").to_pylist()
    assert _same([(row["caption"], row["similarity_tiny"]) for row in rows], caption)
    assert (output / "text_emb").exists() == (caption == "original")
    output = _export(dataset, tmp_path / "dc", "datacomp", caption)
    rows = pq.read_table(output / "metadata/00000.parquet").to_pylist()
    assert _same([(row["text"], row["tiny_similarity_score"]) for row in rows], caption)
    assert ("written by a model" in (output / "README.md").read_text()) == (caption != "original")
    arrays = np.load(output / "metadata/00000.npz")
    assert set(arrays) == ({"tiny_img", "tiny_txt"} if caption == "original" else {"tiny_img"})


@pytest.mark.parametrize("caption", EXPECTED)
def test_the_feed_returns_the_chosen_captions(dataset: Path, caption: str) -> None:
    config = FeedConfig(str(dataset), "all", ("caption", "caption_clean", "similarity_tiny"), caption=caption)
    rows = list(PairDataset(config))
    assert all(row["caption"] == row["caption_clean"] for row in rows)
    found = [(row["caption_clean"], row["similarity_tiny"]) for row in rows]
    assert _same([(text, None if np.isnan(value) else value) for text, value in found], caption)


def test_an_export_cannot_be_continued_with_other_captions(dataset: Path, tmp_path: Path) -> None:
    _export(dataset, tmp_path / "out", "parquet", "original")
    record = values_of(tmp_path / "out/.pairmill/export.json")
    record.pop("caption")  # a record from a version in which captions could not be chosen
    (tmp_path / "out/.pairmill/export.json").write_text(json.dumps(record))
    _export(dataset, tmp_path / "out", "parquet", "original")
    with pytest.raises(ValueError, match="caption 'original', not 'best'"):
        _export(dataset, tmp_path / "out", "parquet", "best")


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_the_parts_of_a_continued_export_choose_from_the_captions_with_which_it_began(
    tmp_path: Path, form: str
) -> None:
    rows = [pair(row[0], row[1], image_embedding_tiny=[1.0, 0.0], text_embedding_tiny=[0.0, 1.0]) for row in ROWS]
    store = write_dataset(tmp_path / "dataset", [rows])
    select(SelectJob.model_validate({"dataset": store.root, "name": "all", "steps": []}))
    values = {"dataset": store.root, "subset": "all", "output": str(tmp_path / "out"), "format": form}
    job = ExportJob.model_validate({**values, "caption": "best", "samples_per_file": 2})
    _add(store, "coca", "tiny")
    export(job)
    parts = {path: path.read_bytes() for path in (tmp_path / "out").glob("0*")}
    _add(store, "blip", "tiny", raised_by=0.5)
    for path in parts:
        path.unlink()
        result = export(job)
        assert (result.written, "blip" in result.newer_columns) == (1, True)
    assert {path: path.read_bytes() for path in parts} == parts
    shutil.rmtree(tmp_path / "dataset/columns/coca")
    with pytest.raises(JobError, match="contains another export"):
        export(job)


def test_the_feed_refuses_a_checkpoint_from_when_best_chose_from_other_captions(tmp_path: Path) -> None:
    store = write_dataset(tmp_path, [[pair(row[0], row[1]) for row in ROWS]])
    config = FeedConfig(store.root, None, ("caption",), caption="best")
    _add(store, "coca", "tiny")
    state = PairDataset(config).state_dict()
    PairDataset(config).load_state_dict(state)
    _add(store, "blip", "tiny", raised_by=0.5)
    with pytest.raises(FeedError, match=r"captions was \['coca'\], now it is \['blip', 'coca'\]"):
        PairDataset(config).load_state_dict(state)


def test_a_rank_that_starts_after_captions_were_added_is_refused_until_all_ranks_open_the_dataset_again(
    tmp_path: Path,
) -> None:
    store = write_dataset(tmp_path, [[pair(row[0], row[1]) for row in ROWS]])
    config = FeedConfig(store.root, None, ("caption",), caption="best", even=True, rank=0, world_size=2)
    _add(store, "coca", "tiny")
    distributed.init_process_group("fake", rank=0, world_size=2, store=distributed.HashStore())
    try:
        PairDataset(config)
        _add(store, "blip", "tiny", raised_by=0.5)
        with pytest.raises(FeedError, match=r"started earlier reads other captions .*start all ranks again"):
            PairDataset(replace(config, rank=1))
        for rank in (0, 1):
            PairDataset(replace(config, rank=rank))
        PairDataset(replace(config, rank=1, caption="coca"))
    finally:
        distributed.destroy_process_group()


def test_unavailable_choices_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptionChoiceError, match="has no captions 'blip'; it has: original, coca"):
        _export(dataset, tmp_path / "out", "webdataset", "blip")
    with pytest.raises(FeedError, match="text_embedding_tiny belongs to the original captions"):
        PairDataset(FeedConfig(str(dataset), "all", ("caption", "text_embedding_tiny"), caption="coca"))
    store = write_dataset(tmp_path / "plain", [[*(pair(row[0], row[1]) for row in ROWS)]])
    with pytest.raises(CaptionChoiceError, match="no written captions with a similarity"):
        PairDataset(FeedConfig(store.root, None, ("caption",), caption="best"))
    _add(store, "first", None)
    with pytest.raises(CaptionChoiceError, match="no written captions with a similarity"):
        PairDataset(FeedConfig(store.root, None, ("caption",), caption="best"))
    assert not (tmp_path / "out").exists()
