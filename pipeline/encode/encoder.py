"""A shard's pictures and captions -> the score columns of every model, in one pass over the decoded pictures.

    decoding threads      body -> pixels -> what each model looks at, the next micro-batches ahead of the model
    the calling thread    micro-batches through the models, then captions, then columns

Equal pictures and equal captions of a shard are encoded once.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pairmill.pipeline.common.faults import local_fault
from pairmill.pipeline.common.hooks import NO_HOOKS, WorkerHooks
from pairmill.pipeline.common.text import describe
from pairmill.pipeline.encode.clip_model import ClipModel, Floats, load_model
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.isolated import DECODE_TIMEOUT_S
from pairmill.pipeline.image.phash import phash
from pairmill.pipeline.image.processor import ImageProcessor, is_one_color
from pairmill.pipeline.image.resize import Pixels
from pairmill.schemas.jobs import ImagesConfig, ModelConfig, RunConfig
from pairmill.schemas.pairs import embedding_type, score_columns
from pairmill.schemas.status import Status

MAX_RESIZED_PIXELS = 1 << 24
"""CLIP's recipe resizes by the shorter side, then cuts: a strip of one pixel by a million would be huge in between."""

_AHEAD = 2
"""Micro-batches that are decoded while one is with the models."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """What decoding told of one picture. `inputs`: recipe -> uint8 [3, side, side]; empty where it did not decode."""

    inputs: dict[str, torch.Tensor]
    status: Status = Status.OK
    detail: str | None = None
    width: int | None = None
    height: int | None = None
    phash: str | None = None
    one_color: bool | None = None


class Encoder:
    """Adds the score columns of every model to a shard's table. Not for several threads at once."""

    def __init__(
        self, models: Sequence[ModelConfig], run: RunConfig, images: ImagesConfig, hooks: WorkerHooks = NO_HOOKS
    ) -> None:
        self._hooks = hooks
        threads = run.encode_threads or os.cpu_count() or 1
        if run.device != "cuda":  # Ray tells torch to use as many as the actor's logical CPUs, which only place it
            torch.set_num_threads(threads)
        self.models = [load_model(model, run, hooks) for model in models]
        self._recipes = {model.input.key: model.input for model in self.models}
        self._processor = ImageProcessor(images)
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="look")

    def close(self) -> None:
        """End the decoding threads."""
        self._decoders.shutdown(wait=True, cancel_futures=True)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append `score_columns` per model; null where there is no picture or caption. Row count and order stay.

        A pair whose picture does not decode is no pair any more, and has the Status that says why.
        """
        rows = np.flatnonzero(table["is_pair"].to_numpy())
        keys = pc.if_else(table["image"].is_valid(), table["sha256"], None)  # a picture may be gone, or there is none
        pictures, picture_of = _distinct(keys.take(rows))
        looks, embeddings = self._encode_pictures([table["image"][rows[place]].as_buffer() for place in pictures])
        seen = [None if place < 0 else looks[place] for place in picture_of]
        good = np.array([look is None or look.status is Status.OK for look in seen], bool)
        if not good.all():
            table = _without_failed(
                table, rows[~good], [look for look in seen if look and look.status is not Status.OK]
            )
            rows, picture_of = rows[good], picture_of[good]
            seen = [look for look, is_good in zip(seen, good, strict=True) if is_good]
        table = _with_looks(table, rows, seen)
        captions, caption_of = _distinct(table["caption_clean"].take(rows))
        texts = [table["caption_clean"][rows[place]].as_py() for place in captions]
        for model, image in zip(self.models, embeddings, strict=True):
            text = model.encode_captions(texts)
            columns = _columns(model, _of(image, picture_of), _of(text, caption_of), picture_of >= 0, caption_of >= 0)
            table = _append(table, rows, columns)
        return table

    def _encode_pictures(self, bodies: Sequence[Any]) -> tuple[list[DecodedImage], list[Floats]]:
        """What was seen of each picture, and per model embeddings [pictures, dim]; zeros where it did not decode."""
        looks: list[DecodedImage] = []
        embeddings = [np.zeros((len(bodies), model.embedding_dim), np.float32) for model in self.models]
        for batch in self._micro_batches(bodies):
            places = len(looks) + np.flatnonzero([look.status is Status.OK for look in batch])
            looks.extend(DecodedImage({}, **_facts(look)) for look in batch)  # without its pixels
            if not len(places):
                continue
            stacked = {
                key: torch.stack([look.inputs[key] for look in batch if look.inputs]) for key in self._recipes
            }  # uint8 [b, 3, side, side] each
            for model, found in zip(self.models, embeddings, strict=True):
                found[places] = model.encode_pixels(stacked[model.input.key])
        return looks, embeddings

    def _micro_batches(self, bodies: Sequence[Any]) -> Iterator[list[DecodedImage]]:
        """The pictures in order, some at a time, while the next ones are being decoded."""
        size = min(model.batch_size for model in self.models)
        pending: deque[list[Future[DecodedImage]]] = deque()
        for start in range(0, len(bodies), size):
            pending.append([self._decoders.submit(self._look, body) for body in bodies[start : start + size]])
            if len(pending) > _AHEAD:
                yield self._results(pending.popleft())
        for batch in pending:
            yield self._results(batch)

    def _results(self, batch: Sequence[Future[DecodedImage]]) -> list[DecodedImage]:
        try:
            with self._hooks.timed("encode_wait"):
                return [future.result(DECODE_TIMEOUT_S) for future in batch]
        except TimeoutError:
            if self._hooks.on_hang is not None:
                self._hooks.on_hang()
            raise

    def _look(self, body: Any) -> DecodedImage:
        """The row border of decoding."""
        try:
            return self._look_at(self._processor.pixels(bytes(body)))
        except ImageError as error:
            return DecodedImage({}, error.status, error.detail)
        except Exception as error:
            if (fault := local_fault(error)) is not None:
                raise fault from error
            return DecodedImage({}, Status.ROW_ERROR, describe(error))

    def _look_at(self, pixels: Pixels) -> DecodedImage:
        height, width = pixels.shape[:2]
        for recipe in self._recipes.values():
            if (most := recipe.pixels_of(width, height)) > MAX_RESIZED_PIXELS:
                raise ImageError(Status.IMAGE_BOMB, f"{width} x {height} would be {most:,} pixels for the model")
        inputs = {key: recipe.picture(pixels) for key, recipe in self._recipes.items()}
        return DecodedImage(inputs, width=width, height=height, phash=phash(pixels), one_color=is_one_color(pixels))


def encode_pictures(model: ClipModel, bodies: Sequence[bytes], images: ImagesConfig) -> Floats:
    """Embeddings [n, dim] of encoded pictures, L2-normalised. Raises ImageError on one that does not decode."""
    processor = ImageProcessor(images)
    return model.encode_pixels(torch.stack([model.input.picture(processor.pixels(body)) for body in bodies]))


def _facts(look: DecodedImage) -> dict[str, Any]:
    return {name: getattr(look, name) for name in ("status", "detail", "width", "height", "phash", "one_color")}


def _distinct(values: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(place of each distinct non-null value, index into these per row, -1 for null): nothing is encoded twice."""
    encoded = values.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    distinct, places = np.unique(codes, return_index=True)
    return places[distinct >= 0], codes


def _of(values: Floats, places: npt.NDArray[np.int64]) -> Floats:
    """Row `place` of the values per place [rows, dim]; zeros for -1."""
    found = np.zeros((len(places), values.shape[1]), np.float32)
    found[places >= 0] = values[places[places >= 0]]
    return found


def _columns(
    model: ClipModel, image: Floats, text: Floats, has_image: npt.NDArray[np.bool_], has_text: npt.NDArray[np.bool_]
) -> dict[str, pa.Array]:
    """Arrow columns [pairs] of one model."""
    similarity = np.einsum("nd,nd->n", image, text)  # [pairs]
    names = score_columns(model.alias, model.embedding_dim).names
    return {
        names[0]: pa.array(similarity.astype(np.float32), mask=~(has_image & has_text)),
        names[1]: _embeddings(image, model.embedding_dim, has_image),
        names[2]: _embeddings(text, model.embedding_dim, has_text),
    }


def _embeddings(values: Floats, dim: int, present: npt.NDArray[np.bool_]) -> pa.Array:
    flat = pa.array(values.astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, type=embedding_type(dim), mask=pa.array(~present))


def _append(table: pa.Table, rows: npt.NDArray[np.int64], columns: dict[str, pa.Array]) -> pa.Table:
    """Add columns that hold one value per row of `rows`; the others get null."""
    places = np.full(table.num_rows, -1)
    places[rows] = np.arange(len(rows))
    indices = pa.array(places, mask=places < 0)  # [rows] -> place among the pairs
    for name, column in columns.items():
        table = table.append_column(name, column.take(indices))
    return table


def _without_failed(table: pa.Table, rows: npt.NDArray[np.int64], looks: Sequence[DecodedImage]) -> pa.Table:
    columns = {name: table[name].to_pylist() for name in ("status", "status_detail", "is_pair")}
    for row, look in zip(rows, looks, strict=True):
        columns["status"][row] = look.status.value
        columns["status_detail"][row] = look.detail
        columns["is_pair"][row] = False
    return _replaced(table, columns)


def _with_looks(table: pa.Table, rows: npt.NDArray[np.int64], seen: Sequence[DecodedImage | None]) -> pa.Table:
    """Fill in size and hash of pictures where the stages before did not: they know them of stored pictures."""
    if table["phash"].null_count < table.num_rows or not any(seen):
        return table
    columns: dict[str, list[Any]] = {
        name: [None] * table.num_rows for name in ("width", "height", "phash", "one_color")
    }
    for row, look in zip(rows, seen, strict=True):
        for name, values in columns.items():
            values[row] = look and getattr(look, name)
    for name in ("width", "height"):  # a PNG or WebP tells only once it is decoded which way is up
        known = zip(table[f"original_{name}"].to_pylist(), columns[name], strict=True)
        columns[f"original_{name}"] = [old if new is None else new for old, new in known]
    return _replaced(table, columns)


def _replaced(table: pa.Table, columns: dict[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    return table
