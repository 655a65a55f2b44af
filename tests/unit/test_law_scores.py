"""Invariant of scores: no NaN or infinity is kept, chosen or exported; a model that returns only such values
stops the run.

The oracle is plain NumPy applied to what the model returned.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.encode import encoder as encoder_module
from pairmill.pipeline.encode.clip_model import ClipModel
from pairmill.pipeline.encode.encoder import Encoder
from pairmill.pipeline.encode.weights import TINY_FOLDER, ModelError
from pairmill.pipeline.export.formats import FormatError, check_scores
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.pairs import embedding_type, in_flight_schema

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"
RUN = RunConfig(device="cpu", batch_size=4, encode_threads=1)
ODD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "zero": 0.0, "huge": 3e38, "fine": 1.0}
INVALID = ("nan", "inf", "-inf", "zero", "huge")  # the norm of huge numbers is infinite


def table_of(bodies: list[bytes], captions: list[str | None]) -> pa.Table:
    rows = [
        {"row_id": f"0:{n}", "uid": f"{n:032x}", "status": "ok", "is_pair": True, "sha256": f"{n:064x}"}
        | {"image": body, "caption": caption, "caption_clean": caption}
        for n, (body, caption) in enumerate(zip(bodies, captions, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=in_flight_schema(pa.schema([])))


@pytest.fixture(scope="module")
def held() -> pa.Table:
    return pq.read_table(CASES / "nan_model.parquet")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Encoder]:
    encoder = Encoder([ModelConfig(name="tiny")], RUN, ImagesConfig())
    yield encoder
    encoder.close()


@pytest.fixture
def model_with(tmp_path: Path) -> Any:
    """Makes a copy of the built-in model and changes its weights."""

    def make(change: Any) -> ModelConfig:
        for file in TINY_FOLDER.glob("*.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        weights = safetensors.torch.load_file(TINY_FOLDER / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
        return ModelConfig(name=str(tmp_path), alias="odd")

    return make


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    array = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    return np.asarray(array.drop_null().to_numpy(zero_copy_only=False), np.float32)


@given(
    pictures=st.lists(st.sampled_from(list(ODD)), min_size=4, max_size=4),
    texts=st.lists(st.sampled_from(list(ODD)), min_size=4, max_size=4),
)
@settings(
    deadline=None,
    max_examples=settings.default.max_examples // 4,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_law_scores_an_invalid_embedding_sets_the_status_of_its_row(
    pictures: list[str], texts: list[str], held: pa.Table, tiny: Encoder
) -> None:
    bodies, captions = held["image"].to_pylist(), held["text"].to_pylist()
    (model,) = tiny.models

    def embed(kinds: list[str], found: list[int]) -> Any:
        raw = torch.ones((4, model.embedding_dim)) * torch.tensor([ODD[kind] for kind in kinds])[:, None]
        return torch.nn.functional.normalize(raw[found], dim=-1).numpy()

    class Odd(ClipModel):
        def __init__(self) -> None:
            self.__dict__ = dict(model.__dict__)
            self.seen = 0

        def encode_images(self, inputs: torch.Tensor) -> Any:
            self.seen += len(inputs)
            return embed(pictures, list(range(self.seen - len(inputs), self.seen)))

        def encode_captions(self, found: Any) -> Any:
            return embed(texts, [captions.index(text) for text in found])

    tiny.models = [Odd()]
    done = tiny(table_of(bodies, captions))
    tiny.models = [model]
    bad = [picture in INVALID or text in INVALID for picture, text in zip(pictures, texts, strict=True)]
    assert done["status"].to_pylist() == ["embedding_invalid" if each else "ok" for each in bad]
    assert done["is_pair"].to_pylist() == [True] * 4
    assert done["similarity_tiny"].is_null().to_pylist() == bad
    assert done["image_embedding_tiny"].is_null().to_pylist() == [kind in INVALID for kind in pictures]
    assert done["text_embedding_tiny"].is_null().to_pylist() == [kind in INVALID for kind in texts]
    for name in ("similarity_tiny", "image_embedding_tiny", "text_embedding_tiny"):
        assert np.isfinite(_numbers(done[name])).all()
    check_scores(done.select([name for name in done.column_names if name.endswith("_tiny")]))


def test_law_scores_one_broken_token_affects_only_the_captions_that_contain_it(held: pa.Table, model_with: Any) -> None:
    (dog,) = _tokens("dog")

    def break_dog(weights: dict[str, torch.Tensor]) -> None:
        weights["token_embedding.weight"][dog] = torch.nan

    encoder = Encoder([model_with(break_dog)], RUN, ImagesConfig())
    captions = held["text"].to_pylist()
    done = encoder(table_of(held["image"].to_pylist(), captions))
    encoder.close()
    expected = ["embedding_invalid" if "dog" in caption else "ok" for caption in captions]
    assert done["status"].to_pylist() == expected
    assert done["status_detail"].to_pylist()[0] == "odd: embedding of the caption"
    assert len(set(expected)) == 2


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("text_projection", np.nan, "captions"),
        ("text_projection", np.inf, "captions"),
        ("text_projection", 0.0, "captions"),
        ("visual.conv1.weight", np.nan, "pictures"),
        ("visual.conv1.weight", np.inf, "pictures"),
    ],
)
def test_law_scores_a_model_that_returns_only_invalid_embeddings_does_not_load(
    name: str, value: float, kind: str, model_with: Any
) -> None:
    with pytest.raises(ModelError, match=f"'odd' produces no valid embeddings of {kind} .*its weights are broken"):
        ClipModel(model_with(lambda weights: weights[name].fill_(value)), RUN)


def test_law_scores_a_shard_without_any_valid_embedding_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "_MANY", 4)
    model = ClipModel(ModelConfig(name="tiny"), RUN)
    embeddings = np.full((4, model.embedding_dim), np.nan, np.float32)
    with pytest.raises(ModelError, match="no valid embeddings of pictures"):
        encoder_module._valid(model, embeddings, np.arange(4), "pictures")
    assert encoder_module._valid(model, embeddings, np.array([0, 1, -1]), "pictures").tolist() == [-1, -1, -1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["similarity", "similarity_m", "image_embedding_m", "text_embedding_m"])
def test_law_scores_an_export_stops_at_nan_or_infinity_in_an_older_output(name: str, value: float) -> None:
    def rows(number: float) -> pa.Table:
        if "embedding" in name:
            flat = pa.array(np.array([1, 0, number, 0], np.float16))
            return pa.table({name: pa.FixedSizeListArray.from_arrays(flat, type=embedding_type(2))})
        return pa.table({name: pa.array([0.5, None, number], pa.float32())})

    check_scores(rows(0.25))
    with pytest.raises(FormatError, match=rf"{name} contains NaN or infinity .* `where: similarity\w* >= -1`"):
        check_scores(rows(value))


def _tokens(text: str) -> list[int]:
    import open_clip

    start, *tokens = [int(token) for token in open_clip.get_tokenizer(f"local-dir:{TINY_FOLDER}")([text])[0] if token]
    del start
    return tokens[:-1]
