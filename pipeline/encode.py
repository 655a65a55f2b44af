"""The place where open_clip is loaded and called: stored pictures and captions in, embeddings and similarities out.

Similarity is the cosine of the L2-normalised embeddings in float32, before they are rounded to float16 for storage
(Radford et al. 2021, https://arxiv.org/abs/2103.00020). It is computed from the stored picture, so anyone can compute
it again from `images/`.
"""

import difflib
import functools
import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pipeline import storage
from schemas.jobs import ModelConfig, RunConfig
from schemas.pairs import score_columns

if TYPE_CHECKING:
    import torch

TINY_FOLDER = Path(__file__).parent / "models" / "tiny"

MAX_CAPTION_BYTES = 1_000
"""Of a caption, only this much is tokenized: 77 tokens of 13 bytes. CLIP's byte-pair merging is quadratic in the length
of a word, and a hostile caption may be one word of a megabyte."""

Floats = npt.NDArray[np.float32]


class ModelError(ValueError):
    """A model or its weights cannot be had; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class ScoreContract:
    """What made the scores of one model, as it stands in every file's metadata."""

    alias: str
    name: str
    pretrained: str | None
    weights_sha256: str
    preprocessing: dict[str, Any]
    dtype: str
    context_length: int
    pixels: str = "stored picture"


class ClipModel:
    """One open_clip model, ready to encode on one device."""

    def __init__(self, config: ModelConfig, run: RunConfig) -> None:
        import open_clip  # with torch, 4 s: only who encodes pays for it
        import torch

        self._torch = torch
        self.alias = config.alias
        self.device = _device(run)
        self.batch_size = run.batch_size
        name, pretrained, weights = _locate(config)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="QuickGELU mismatch")
                self._model, self._preprocess = open_clip.create_model_from_pretrained(
                    name, pretrained=pretrained, device=self.device
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"model {config.name!r} ({config.pretrained}) does not load: {error}") from error
        self._model.eval()
        self._tokenize = open_clip.get_tokenizer(name)
        self.contract = ScoreContract(
            alias=config.alias,
            name=config.name,
            pretrained=config.pretrained,
            weights_sha256=_sha256(weights),
            preprocessing=open_clip.get_model_preprocess_cfg(self._model),
            dtype="float32",
            context_length=int(self._tokenize.context_length),
        )
        self.embedding_dim = int(self.encode_captions(["a"]).shape[1])

    def encode_pictures(self, pictures: Sequence[bytes]) -> Floats:
        """Embeddings [n, dim] of encoded pictures, L2-normalised. Raises OSError on a picture that does not decode."""

        def embed(batch: Sequence[bytes]) -> "torch.Tensor":
            pixels = self._torch.stack([self._preprocess(_decode(picture)) for picture in batch])  # [b, 3, side, side]
            return self._model.encode_image(pixels.to(self.device), normalize=True)  # type: ignore[no-any-return]

        return self._in_batches(pictures, embed)  # [n, dim]

    def encode_captions(self, captions: Sequence[str]) -> Floats:
        """Embeddings [n, dim] of captions, L2-normalised, cut as `MAX_CAPTION_BYTES` says."""

        def embed(batch: Sequence[str]) -> "torch.Tensor":
            tokens = self._tokenize([_bounded(caption) for caption in batch])  # [b, context_length]
            return self._model.encode_text(tokens.to(self.device), normalize=True)  # type: ignore[no-any-return]

        return self._in_batches(captions, embed)  # [n, dim]

    def _in_batches(self, items: Sequence[Any], embed: Callable[[Sequence[Any]], "torch.Tensor"]) -> Floats:
        with self._torch.inference_mode():
            starts = range(0, len(items), self.batch_size)
            parts = [embed(items[start : start + self.batch_size]).float().cpu() for start in starts]
        return self._torch.cat(parts).numpy() if parts else np.empty((0, self.embedding_dim), np.float32)


class Encoder:
    """Adds the score columns of every model to a shard's table."""

    def __init__(self, models: Sequence[ModelConfig], run: RunConfig) -> None:
        import torch

        if run.device != "cuda":  # Ray tells torch to use as many as the actor's logical CPUs, which only place it
            torch.set_num_threads(run.encode_threads or os.cpu_count() or 1)
        self.models = [load_model(model, run) for model in models]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append `score_columns` per model; null for rows that are no pairs. Row count and order stay."""
        rows = np.flatnonzero(table["is_pair"].to_numpy())
        pairs = table.select(["sha256", "caption_clean"]).take(rows)  # without the pictures: no copy of them
        picture_rows, picture_of_pair = _distinct(pairs["sha256"])
        caption_rows, caption_of_pair = _distinct(pairs["caption_clean"])
        pictures = [table["image"][row].as_buffer() for row in rows[picture_rows]]
        captions = [pairs["caption_clean"][row].as_py() for row in caption_rows]
        has_text = caption_of_pair >= 0
        for model in self.models:
            image = model.encode_pictures(pictures)[picture_of_pair]  # [pairs, dim]
            text = np.zeros_like(image)  # [pairs, dim]
            text[has_text] = model.encode_captions(captions)[caption_of_pair[has_text]]
            columns = _columns(model, image, text, has_text)
            table = _append(table, columns)
        return table


@functools.lru_cache(maxsize=4)
def load_model(config: ModelConfig, run: RunConfig) -> ClipModel:
    """A model, loaded once per process."""
    return ClipModel(config, run)


def check_models(models: Sequence[ModelConfig]) -> list[str]:
    """SHA-256 of each model's weights, fetched first where they are not on disk. Raises ModelError; loads nothing."""
    return [_sha256(_locate(model)[2]) for model in models]


def check_device(run: RunConfig) -> None:
    """Raises ModelError where a GPU is asked for and this machine has none."""
    if run.device == "cuda":
        _device(run)


def input_side(config: ModelConfig) -> int:
    """Pixels per side that a model looks at; 0 where open_clip's configuration does not say."""
    if config.name == "tiny":
        with storage.open_input(str(TINY_FOLDER / "open_clip_config.json")) as file:
            return int(json.load(file)["model_cfg"]["vision_cfg"]["image_size"])
    import open_clip

    side = (open_clip.get_model_config(config.name) or {}).get("vision_cfg", {}).get("image_size", 0)
    return int(min(side) if isinstance(side, list | tuple) else side)


def _locate(config: ModelConfig) -> tuple[str, str | None, str]:
    """(open_clip's name, its `pretrained`, path of the weights' file)."""
    if config.name == "tiny":
        return f"local-dir:{TINY_FOLDER}", None, str(TINY_FOLDER / "model.safetensors")
    import open_clip

    if config.name not in open_clip.list_models():
        close = difflib.get_close_matches(config.name, open_clip.list_models())
        raise ModelError(f"open_clip has no model {config.name!r}" + (f"; near it: {close}" if close else ""))
    if not config.pretrained:
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        raise ModelError(f"model {config.name!r} needs `pretrained`: one of {tags}, or a file of weights")
    if Path(config.pretrained).is_file():
        return config.name, config.pretrained, config.pretrained
    tag = open_clip.get_pretrained_cfg(config.name, config.pretrained)
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        raise ModelError(f"{config.pretrained!r} is neither a file nor a tag of {config.name!r}; its tags are {tags}")
    try:
        return config.name, config.pretrained, str(open_clip.download_pretrained(tag))
    except Exception as error:  # whatever the hub's client raises when it is offline
        raise ModelError(
            f"the weights {config.pretrained!r} of {config.name!r} cannot be fetched "
            f"({type(error).__name__}); without a network, give `pretrained` a local file"
        ) from error


def _device(run: RunConfig) -> str:
    import torch

    if run.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("run.device is cuda, but this machine has no CUDA device; use run.device=cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if run.device == "auto" else run.device


def _sha256(path: str) -> str:
    with storage.open_input(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _decode(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture)).convert("RGB")


def _bounded(caption: str) -> str:
    return caption.encode()[:MAX_CAPTION_BYTES].decode(errors="ignore")


def _distinct(values: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(place of each distinct non-null value, index into these per row, -1 for null): nothing is encoded twice."""
    encoded = values.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    distinct, places = np.unique(codes, return_index=True)
    return places[distinct >= 0], codes


def _columns(model: ClipModel, image: Floats, text: Floats, has_text: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    """Arrow columns [pairs] of one model; similarity and text are null where there is no caption."""
    similarity = np.einsum("nd,nd->n", image, text)  # [pairs]
    names = score_columns(model.alias, model.embedding_dim).names
    return {
        names[0]: pa.array(similarity.astype(np.float32), mask=~has_text),
        names[1]: _embeddings(image, model.embedding_dim, np.ones_like(has_text)),
        names[2]: _embeddings(text, model.embedding_dim, has_text),
    }


def _embeddings(values: Floats, dim: int, present: npt.NDArray[np.bool_]) -> pa.Array:
    flat = pa.array(values.astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, dim, mask=pa.array(~present))


def _append(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    """Add columns that hold one value per pair; rows that are no pairs get null."""
    is_pair = table["is_pair"].to_numpy()
    indices = pa.array(np.cumsum(is_pair) - 1, mask=~is_pair)  # [rows] -> place among the pairs
    for name, column in columns.items():
        table = table.append_column(name, column.take(indices))
    return table
