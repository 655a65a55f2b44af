"""Tests captions by a CoCa model with random weights. The oracle is open_clip's own `generate`.

`generate` imports parts of transformers that transformers 5 lacks, so the few classes that it uses are defined here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from open_clip import coca_model

from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.check.rescore_columns import rescore_columns
from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.columns.score_card import ScoreCard
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.encode.clip_model import ClipModel
from pairmill.pipeline.encode.coca import CocaModel
from pairmill.pipeline.encode.weights import ModelError
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kind import PICTURE, ScoreError
from pairmill.pipeline.score.kinds import kind_of
from pairmill.pipeline.score.prepare import prepared
from pairmill.pipeline.score.score_shard import opened
from pairmill.pipeline.select.tasks import LocalTasks
from pairmill.pipeline.source.clean_captions import clean_captions
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig
from pairmill.schemas.manifest import manifest_name
from tests.coca_folder import write_coca
from tests.committed_shards import pair, reject, write_dataset

RUN = RunConfig(device="cpu", encode_threads=1)
MAX_TOKENS = 12


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coca(tmp_path_factory.mktemp("models") / "coca")


@pytest.fixture(scope="module")
def coca(folder: Path) -> CocaModel:
    return CocaModel(ModelConfig(name=str(folder), alias="c", dtype="float32"), RUN, MAX_TOKENS)


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """Pictures of noise and of plain colors, uint8 [12, 3, 32, 32]."""
    noise = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for number in range(6):
        noise[number] = 50 * number
    return noise


@pytest.fixture
def _parts_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class All(list[Any]):
        def __call__(self, ids: torch.Tensor, scores: Any) -> Any:
            for each in self:
                scores = each(ids, scores)
            return scores

    class Criteria(list[Any]):
        def __call__(self, ids: torch.Tensor, scores: Any) -> torch.Tensor:
            return torch.stack([each(ids, scores) for each in self]).any(dim=0)

    def no_end_before(least: int, end: torch.Tensor) -> Any:
        def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            is_end = torch.arange(scores.shape[1]) == end
            return scores.masked_fill(is_end, -np.inf) if ids.shape[1] < least else scores

        return process

    def keep_best(count: int) -> Any:
        return lambda ids, scores: scores.masked_fill(scores < scores.topk(count).values[:, -1:], -np.inf)

    def longest(max_length: int) -> Any:
        return lambda ids, scores: torch.full((len(ids),), ids.shape[1] >= max_length)

    found = {
        "_has_transformers": True,
        "LogitsProcessorList": All,
        "StoppingCriteriaList": Criteria,
        "MinLengthLogitsProcessor": no_end_before,
        "RepetitionPenaltyLogitsProcessor": lambda penalty: lambda ids, scores: scores,  # open_clip's default, 1.0
        "MaxLengthCriteria": longest,
        "GENERATION_TYPES": {"top_k": keep_best},
    }
    for name, value in found.items():
        monkeypatch.setattr(coca_model, name, value, raising=False)


@pytest.mark.usefixtures("_parts_of_transformers")
def test_captions_equal_those_of_open_clips_own_generate(coca: CocaModel, folder: Path, inputs: torch.Tensor) -> None:
    model, recipe = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    normalize = recipe.transforms[-1]
    expected = []
    for picture in inputs:
        tokens = model.generate(
            normalize(picture.float() / 255)[None], generation_type="top_k", top_k=1, seq_len=MAX_TOKENS
        )
        text = open_clip.decode(tokens[0]).split("<end_of_text>")[0]
        expected.append(text.replace("<start_of_text>", "").split("!")[0])  # open_clip pads with the token for "!"
    written = coca.write_captions(inputs)
    assert [(text or "").split("!")[0] for text in written] == expected
    assert len(set(written)) > 6 and len({len((text or "").split()) for text in written}) > 2


def test_a_caption_depends_on_its_picture_alone(coca: CocaModel, inputs: torch.Tensor) -> None:
    together = coca.write_captions(inputs)
    assert together == [coca.write_captions(picture[None])[0] for picture in inputs]
    assert together[::-1] == coca.write_captions(inputs.flip(0))


def test_a_dataset_gets_captions_with_their_similarity_and_passes_verify(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairmill.pipeline.check.rescore_columns.RunConfig", lambda: RUN)  # with one thread
    tiny = ClipModel(ModelConfig(name="tiny"), RUN)
    store = _dataset(tmp_path / "out", tiny)
    settings = {"model": str(folder), "similarity": "tiny", "max_tokens": MAX_TOKENS}
    card, rows = _score(store, ScoreConfig.model_validate({"caption_model": settings}))
    assert [column.name for column in card.columns] == ["coca", "coca_similarity"]
    captions = [row["coca"] for row in rows]
    assert captions == clean_captions(pa.array(captions)).to_pylist() and all(captions[:-1])
    for row in rows[:-1]:
        (text,) = tiny.encode_captions([row["coca"]])
        stored = row["image_embedding_tiny"]
        if stored is None:
            assert row["coca_similarity"] is None
        else:
            image = np.array(stored, np.float32)
            assert row["coca_similarity"] == pytest.approx(float(image @ text / np.linalg.norm(image)), abs=1e-5)
    report = VerifyReport()
    assert not list(rescore_columns(Snapshot.of(store), 3, report)) and report.scores_recomputed == 3


def _dataset(root: Path, tiny: ClipModel) -> Store:
    embeddings = np.random.default_rng(0).normal(size=(5, tiny.embedding_dim)).astype(np.float16)
    rows = [pair(f"a dog {n}", 0.3, image_embedding_tiny=None if n == 4 else embeddings[n]) for n in range(5)]
    return write_dataset(root, [[*rows, reject("gone")]], contract=tiny.contract, dim=tiny.embedding_dim)


def _score(store: Store, score: ScoreConfig) -> tuple[ScoreCard, list[dict[str, object]]]:
    """Add the score `coca` as the stages do, but without Ray."""
    snapshot = Snapshot.of(store)
    card = prepared(snapshot, "coca", score, LocalTasks(), RUN)
    ((shard, generation),) = snapshot.generations
    manifest = read_manifest(store, manifest_name(shard, generation))
    reader = snapshot.pairs_reader()
    pictures = reader.read(snapshot.planned(snapshot.chunk.shards[0]), manifest)[PICTURE]
    reader.close()
    rows = snapshot.read(snapshot.chunk.shards[0], ["row_id", "image_embedding_tiny"]).append_column(PICTURE, pictures)
    made = opened(store, card, RUN)(rows)
    columns = made.select(kind_of("coca", card.score).schema.names).append_column("row_id", rows["row_id"])
    write_columns(store, "coca", columns, manifest, {"score": "coca"}, card.fingerprint)
    names = ["coca", "coca_similarity", "image_embedding_tiny"]
    scored = Snapshot.of(store)
    return card, scored.read(scored.chunk.shards[0], names).to_pylist()


def test_unsuitable_models_and_changed_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    store = write_dataset(tmp_path / "out", [[pair("a dog", 0.3)]])
    for settings, problem in (
        ({"model": "tiny"}, "'tiny' does not write captions; choose a CoCa"),
        ({"model": str(folder), "max_tokens": 30}, "has a context of only 16 tokens"),
    ):
        score = ScoreConfig.model_validate({"caption_model": settings})
        with pytest.raises(ModelError, match=problem):
            prepared(Snapshot.of(store), "coca", score, LocalTasks(), RUN)
    other = write_coca(tmp_path / "other", seed=1)
    score = ScoreConfig.model_validate({"caption_model": {"model": str(other), "max_tokens": MAX_TOKENS}})
    card = prepared(Snapshot.of(store), "coca", score, LocalTasks(), RUN)
    weights = safetensors.torch.load_file(other / "open_clip_model.safetensors")
    weights["logit_scale"] += 1
    safetensors.torch.save_file(weights, other / "open_clip_model.safetensors")
    with pytest.raises(ScoreError, match="have changed since the score was added"):
        opened(store, card, RUN)


def test_a_model_can_be_below_the_home_folder_and_a_folder_without_one_does_not_hide_a_known_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_dataset(tmp_path / "out", [[pair("a dog", 0.3)]])
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coca_ViT-B-32").mkdir()
    for name, resolved in ((f"~/{folder.name}", str(folder)), ("coca_ViT-B-32", "coca_ViT-B-32")):
        score = kind_of("coca", ScoreConfig.model_validate({"caption_model": name})).resolved(Snapshot.of(store))
        assert score.caption_model is not None and score.caption_model.model == resolved


def test_a_picture_for_which_the_model_gives_nan_has_no_caption(
    coca: CocaModel, inputs: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalize = coca.input.normalize

    def broken(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ready = normalize(pixels, dtype)
        return torch.where(pixels.amax(dim=(1, 2, 3), keepdim=True) == 0, torch.nan, ready)

    monkeypatch.setattr(coca.input, "normalize", broken)
    written = coca.write_captions(inputs[:3])
    assert written[0] is None and all(written[1:])
