"""Embeds queries with the model that made the stored embeddings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.files import S3_SCHEMES, Files, is_remote
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.search.errors import SearchError
from pairmill.pipeline.search.vector_index import Floats
from pairmill.pipeline.source.clean_captions import clean_captions
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.run import RunConfig

if TYPE_CHECKING:
    from pairmill.pipeline.encode.clip_model import ClipModel

MAX_TEXT_CHARS = 10_000
MAX_PICTURE_BYTES = 100_000_000


@dataclass(frozen=True)
class QueryModel:
    """The model of stored embeddings, loaded once per process. Thread-safe."""

    model: "ClipModel"

    @classmethod
    def load(cls, contract: ScoreContract, run: RunConfig | None = None) -> "QueryModel":
        """Load the model. Raises ModelError if its weights on this machine are missing or differ."""
        from pairmill.pipeline.encode.clip_model import model_of

        return cls(model_of(contract, run or RunConfig()))


def embed_text(model: QueryModel, text: str) -> Floats:
    """The embedding of a phrase, cleaned like a caption: float32 [1, dim], L2-normalized. Raises SearchError."""
    if len(text) > MAX_TEXT_CHARS:
        raise SearchError(f"the text has {len(text):,} characters; at most {MAX_TEXT_CHARS:,} are allowed")
    (cleaned,) = clean_captions(pa.array([text.encode(errors="replace").decode()])).to_pylist()
    if not cleaned:
        raise SearchError("the text is empty: describe the pictures or captions to find")
    return _valid(model.model.encode_captions([cleaned]), "text")


def embed_image(model: QueryModel, body: bytes, max_pixels: int | None = None) -> Floats:
    """The embedding of an encoded picture, which can be hostile: float32 [1, dim], L2-normalized.

    `max_pixels`: larger pictures are refused; None for the default of `images.max_pixels`. Raises SearchError.
    """
    import torch

    from pairmill.pipeline.encode.encoder import MAX_RESIZED_PIXELS

    config = ImagesConfig() if max_pixels is None else ImagesConfig(max_pixels=max_pixels)
    try:
        pixels = ImageProcessor(config).pixels(body)
    except ImageError as error:
        why = clean_text(error.detail) or error.status.value
        raise SearchError(f"the picture cannot be used: {why}") from None
    height, width = pixels.shape[:2]
    if model.model.input.resized_pixels(width, height) > MAX_RESIZED_PIXELS:
        raise SearchError(f"the picture cannot be used: {width} x {height} pixels is too long and narrow")
    return _valid(model.model.encode_images(torch.stack([model.model.input.prepare(pixels)])), "picture")


def read_picture(files: Files, uri: str) -> bytes:
    """The bytes of a picture at a local path or `s3://` URL. Raises SearchError if the picture is too large or cannot
    be read."""
    if is_remote(uri) and not uri.startswith(S3_SCHEMES):
        raise SearchError(f"{uri} cannot be read: use a local file or an s3:// URL")
    try:
        with files.open(uri) as file:
            body = file.read(MAX_PICTURE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise SearchError(f"{uri} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(body) > MAX_PICTURE_BYTES:
        raise SearchError(f"{uri} is larger than {MAX_PICTURE_BYTES:,} bytes")
    return body


def _valid(embedding: Floats, what: str) -> Floats:
    if not np.isfinite(embedding).all() or not embedding.any():
        raise SearchError(f"the model produces no valid embedding of this {what}")
    return embedding
