"""Finds the pairs whose pictures are closest to a pair, a text or a picture.

`_search` is the one place that looks at all embeddings: here, exactly and in memory.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.dataset.parquet import read_schema
from pairmill.pipeline.explore.gallery import Card
from pairmill.pipeline.explore.page import PageError
from pairmill.pipeline.explore.start import Mask
from pairmill.pipeline.explore.view import View
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.pairs import score_column_names

MAX_ROWS = 200_000
"""With more rows than this, an exact search takes too long for a page."""
_BLOCK_ROWS = 16_384
_UNLIKE = -2.0
"""Below every cosine: for pairs without an embedding."""

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Near:
    """One pair that was found."""

    row: int
    similarity: float
    """Cosine."""


def alias_of(view: View, wanted: str) -> str | None:
    """The model to search with: the wanted one if it has embeddings, else the first one that has; None without any."""
    return wanted if wanted in view.aliases else next(iter(view.aliases), None)


def of_row(view: View, alias: str, row: int, k: int) -> tuple[list[Near], str | None]:
    """The pairs closest to a pair's picture, without the pair itself, and a note if there is something to say."""
    if view.num_rows > MAX_ROWS:
        return [], _too_many(view)
    vector = _embedding(view, alias, row)
    if vector is None:
        return [], f"{alias} has no embedding of this picture."
    mask = view.start("pairs", None).copy()
    mask[row] = False
    return _search(view, alias, vector, k, mask), None


def of_question(view: View, alias: str, text: str, picture: bytes | None, k: int) -> tuple[list[Near], str | None]:
    """The pairs whose pictures are closest to a text or a picture. Raises PageError."""
    if view.num_rows > MAX_ROWS:
        return [], _too_many(view)
    vector = _encoded(view, alias, text, picture)
    return _search(view, alias, vector, k, view.start("pairs", None)), None


def with_value(card: Card, near: Near) -> Card:
    """A card that shows its similarity."""
    return replace(card, value=f"{near.similarity:.3f}")


def _too_many(view: View) -> str:
    return f"Searching is exact and limited to {MAX_ROWS:,} pairs; this dataset has {view.num_rows:,}."


def _search(view: View, alias: str, vector: Vector, k: int, mask: Mask) -> list[Near]:
    """The k rows of the mask with the highest cosine, best first. `vector`: float32 [dim], of length 1."""
    scores = np.full(view.num_rows, _UNLIKE, np.float32)
    start = 0
    for block in _matrices(view, alias):
        scores[start : start + len(block)] = block.astype(np.float32) @ vector
        start += len(block)
    scores[~mask | ~np.isfinite(scores) | ~_valid(view, alias)] = _UNLIKE
    k = min(k, int((scores > _UNLIKE).sum()))
    if not k:
        return []
    best = np.argpartition(-scores, k - 1)[:k]
    return [Near(int(row), float(scores[row])) for row in best[np.lexsort((best, -scores[best]))]]


def _matrices(view: View, alias: str) -> Sequence[npt.NDArray[np.float16]]:
    """The embeddings of the pictures, float16 [rows, dim] in blocks."""
    name = score_column_names(alias).image_embedding
    dim = view.snapshot.schema.field(name).type.list_size
    blocks = []
    for chunk in view.cache.table([name])[name].chunks:
        values = chunk.values.slice(chunk.offset * dim, len(chunk) * dim).to_numpy(zero_copy_only=True)
        blocks += [values.reshape(-1, dim)[i : i + _BLOCK_ROWS] for i in range(0, len(chunk), _BLOCK_ROWS)]
    return blocks


def _valid(view: View, alias: str) -> Mask:
    name = score_column_names(alias).image_embedding
    valid: Mask = view.cache.table([name])[name].is_valid().to_numpy()
    return valid


def _embedding(view: View, alias: str, row: int) -> Vector | None:
    name = score_column_names(alias).image_embedding
    value = view.cache.table([name])[name][row]
    return None if not value.is_valid else np.asarray(value.values.to_numpy(), np.float32)


def _encoded(view: View, alias: str, text: str, picture: bytes | None) -> Vector:
    """float32 [dim], by the model that made the dataset's embeddings. Raises PageError."""
    from pairmill.pipeline.encode.clip_model import load_model  # imports torch: 4 s
    from pairmill.pipeline.encode.encoder import encode_pictures
    from pairmill.pipeline.encode.weights import ModelError
    from pairmill.pipeline.image.decode import ImageError

    contract = _contract(view, alias)
    config = ModelConfig(name=contract.name, pretrained=contract.pretrained, alias=contract.alias)
    try:
        model = load_model(config, RunConfig(device="cpu"))
    except ModelError as error:
        raise PageError(f"The model {alias} cannot be loaded here: {error}") from None
    if model.contract.weights_sha256 != contract.weights_sha256:
        raise PageError(f"The weights of {alias} on this machine are not the ones that made these embeddings.")
    if picture is None:
        return np.asarray(model.encode_captions([text])[0], np.float32)
    try:
        return np.asarray(encode_pictures(model, [picture], ImagesConfig())[0], np.float32)
    except ImageError as error:
        raise PageError(f"This picture cannot be decoded: {error}") from None


def _contract(view: View, alias: str) -> ScoreContract:
    """How the embeddings were made, from the footer of the file that has them."""
    shard = view.snapshot.chunk.shards[0]
    for name in (shard.pairs, *shard.columns):
        metadata = read_schema(view.snapshot.store, name).metadata or {}
        for model in json.loads(metadata.get(b"pairmill", b"{}")).get("models", []):
            if model["alias"] == alias:
                return ScoreContract(**model)
    raise PageError(f"The dataset does not say which model {alias} is.")
