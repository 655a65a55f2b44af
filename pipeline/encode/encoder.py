"""Computes the score columns of every model from a shard's pictures and captions. Each picture is decoded only once.

    decoding threads    turn bodies into pixels, then into the input of each model, a few micro-batches ahead
    calling thread      runs the models on the micro-batches, then on the captions, and makes the columns

Equal pictures and equal captions in a shard are encoded only once.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pairmill.pipeline.common.faults import local_fault
from pairmill.pipeline.common.hooks import NO_HOOKS, WorkerHooks
from pairmill.pipeline.common.progress import ShardProgress, unwatched
from pairmill.pipeline.common.text import describe
from pairmill.pipeline.encode.clip_model import ClipModel, Floats, is_unit, load_model
from pairmill.pipeline.encode.embedding_columns import Indices, append_scores
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.isolated import DECODE_TIMEOUT_S
from pairmill.pipeline.image.measure_columns import append_measures
from pairmill.pipeline.image.measures import Measured, measure
from pairmill.pipeline.image.one_color import is_one_color
from pairmill.pipeline.image.phash import phash
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.image.resize import Pixels
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.pictures import PictureScore, used_measures
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.status import Status

MAX_RESIZED_PIXELS = 1 << 24
"""Maximum number of pixels after resizing. CLIP first resizes by the shorter side and then crops, so a strip of 1 x
1,000,000 pixels would be huge before the crop."""

_MANY = 32
"""A model is broken if all embeddings of a shard's pictures or captions are invalid and at least this many of them are
distinct."""

_BATCHES_AHEAD = 2
"""Number of micro-batches that are decoded while the models encode one."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Result of decoding one picture. Sizes are in pixels, with the EXIF orientation applied."""

    status: Status = Status.OK
    detail: str | None = None
    width: int | None = None
    height: int | None = None
    phash: str | None = None
    """None if an earlier stage computed it. The same applies to `one_color`."""
    one_color: bool | None = None
    measured: Measured | None = None
    inputs: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """`ModelInput.key` -> input, uint8 [3, side, side]. Empty if the picture did not decode."""


Decode = Callable[[pa.Buffer], DecodedImage]


class Encoder:
    """Adds the score columns of every model to a shard's table. Thread-safe: the models can encode one shard while
    another is being prepared or having its columns added."""

    def __init__(
        self,
        models: Sequence[ModelConfig],
        run: RunConfig,
        images: ImagesConfig,
        hooks: WorkerHooks = NO_HOOKS,
        scores: Mapping[str, PictureScore] | None = None,
    ) -> None:
        """Load the models. `scores`: picture scores by name, for pictures that no earlier stage has decoded. Raises
        ModelError."""
        self._scores = scores or {}
        self._measures = used_measures(self._scores.values())
        self._hooks = hooks
        threads = run.encode_threads or os.cpu_count() or 1
        if run.device != "cuda":  # Ray sets this to the number of logical CPUs, which only matters for scheduling
            torch.set_num_threads(threads)
        self.models = [load_model(model, run, hooks) for model in models]
        self._inputs = {model.input.key: model.input for model in self.models}
        self._processor = ImageProcessor(images)
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def close(self) -> None:
        """Stop the decoding threads."""
        self._decoders.shutdown(wait=True, cancel_futures=True)

    def __call__(self, table: pa.Table, progress: ShardProgress | None = None) -> pa.Table:
        """Append the `score_columns` of each model. The rows and their order do not change.

        If no earlier stage has decoded the pictures, the columns of the picture scores come before the `score_columns`.

        A row whose picture does not decode is no longer a pair and gets a Status that says why. An embedding that is
        NaN, infinite or zero becomes null, and its row gets a Status. Raises ModelError if a shard has many embeddings
        and all of them are invalid.
        """
        rows = np.flatnonzero(table["is_pair"].to_numpy())  # [pairs]
        keys = pc.if_else(table["image"].is_valid(), table["sha256"], None)  # a picture's bytes can be missing
        first, image_of = _distinct(keys.take(rows))
        bodies = [table["image"][rows[pair]].as_buffer() for pair in first]
        is_first = table["phash"].null_count == table.num_rows  # a corpus: no earlier stage has decoded them
        decode = partial(self._decode_safely, is_first=is_first)
        decoded, embeddings = self._encode_images(bodies, decode, progress or unwatched())
        of_pair = [None if index < 0 else decoded[index] for index in image_of]
        is_good = np.array([image is None or image.status is Status.OK for image in of_pair], bool)
        if not is_good.all():
            failed = [image for image in of_pair if image and image.status is not Status.OK]
            table = _with_failures(table, rows[~is_good], failed)
            rows, image_of = rows[is_good], image_of[is_good]
            of_pair = [image for image, good in zip(of_pair, is_good, strict=True) if good]
        if is_first and any(of_pair):
            table = _with_image_columns(table, rows, of_pair)
        if is_first:
            measured: list[Measured | None] = [None] * table.num_rows
            for row, image in zip(rows, of_pair, strict=True):
                measured[row] = image and image.measured
            table = append_measures(table, self._scores, measured)
        first, caption_of = _distinct(table["caption_clean"].take(rows))
        captions = [table["caption_clean"][rows[pair]].as_py() for pair in first]
        for model, images in zip(self.models, embeddings, strict=True):
            texts = model.encode_captions(captions)  # [distinct captions, dim]
            good = _valid(model, images, image_of, "pictures"), _valid(model, texts, caption_of, "captions")
            table = append_scores(table, model, rows, (images, good[0]), (texts, good[1]))
            table = _with_invalid(table, model, rows, (good[0] != image_of, good[1] != caption_of))
        return table

    def _encode_images(
        self, bodies: Sequence[pa.Buffer], decode: Decode, progress: ShardProgress
    ) -> tuple[list[DecodedImage], list[Floats]]:
        """(results of decoding, without the inputs; embeddings of each model, float32 [bodies, dim], with zeros where
        decoding failed)."""
        decoded: list[DecodedImage] = []
        embeddings = [np.zeros((len(bodies), model.embedding_dim), np.float32) for model in self.models]
        progress.expect(len(bodies))
        for batch in self._micro_batches(bodies, decode):
            progress.done(len(batch), sum(image.status is Status.OK for image in batch))
            good = len(decoded) + np.flatnonzero([image.status is Status.OK for image in batch])
            decoded.extend(replace(image, inputs={}) for image in batch)
            if not len(good):
                continue
            stacked = {
                key: torch.stack([image.inputs[key] for image in batch if image.inputs]) for key in self._inputs
            }  # uint8 [b, 3, side, side] each
            for model, found in zip(self.models, embeddings, strict=True):
                found[good] = model.encode_images(stacked[model.input.key])
        return decoded, embeddings

    def _micro_batches(self, bodies: Sequence[pa.Buffer], decode: Decode) -> Iterator[list[DecodedImage]]:
        """Decoded pictures in order, one batch at a time, while the next batches are being decoded."""
        size = min(model.batch_size for model in self.models)
        pending: deque[list[Future[DecodedImage]]] = deque()
        for start in range(0, len(bodies), size):
            pending.append([self._decoders.submit(decode, body) for body in bodies[start : start + size]])
            if len(pending) > _BATCHES_AHEAD:
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

    def _decode_safely(self, body: pa.Buffer, is_first: bool) -> DecodedImage:
        """Decode one picture. An unexpected error affects only its own row, unless this machine is at fault."""
        try:
            data = bytes(body)
            pixels = self._processor.pixels(data)
            measured = measure(pixels, data, self._measures) if self._measures and is_first else None
            return replace(self._decode(pixels, is_first), measured=measured)
        except ImageError as error:
            return DecodedImage(error.status, error.detail)
        except Exception as error:
            if (fault := local_fault(error)) is not None:
                raise fault from error
            return DecodedImage(Status.ROW_ERROR, describe(error))

    def _decode(self, pixels: Pixels, is_first: bool) -> DecodedImage:
        """Make the result for one picture. `is_first`: its hash and `one_color` are not known yet."""
        height, width = pixels.shape[:2]
        for model_input in self._inputs.values():
            if (resized := model_input.resized_pixels(width, height)) > MAX_RESIZED_PIXELS:
                raise ImageError(Status.IMAGE_BOMB, f"{width} x {height} would be resized to {resized:,} pixels")
        return DecodedImage(
            width=width,
            height=height,
            phash=phash(pixels) if is_first else None,
            one_color=is_one_color(pixels) if is_first else None,
            inputs={key: model_input.prepare(pixels) for key, model_input in self._inputs.items()},
        )


def encode_pictures(model: ClipModel, bodies: Sequence[bytes], images: ImagesConfig) -> Floats:
    """Picture files (their bytes) -> float32 [n, dim], L2-normalized. Raises ImageError if one does not decode."""
    processor = ImageProcessor(images)
    return model.encode_images(torch.stack([model.input.prepare(processor.pixels(body)) for body in bodies]))


def _distinct(values: pa.ChunkedArray) -> tuple[Indices, Indices]:
    """(index of the first occurrence of each distinct non-null value, index of each value among these; -1 if null)."""
    encoded = values.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    distinct, first = np.unique(codes, return_index=True)
    return first[distinct >= 0], codes


def _valid(model: ClipModel, embeddings: Floats, indices: Indices, kind: str) -> Indices:
    """`indices` with -1 for embeddings that are NaN, infinite or zero. Raises ModelError if a shard has many embeddings
    and all of them are invalid."""
    is_valid = is_unit(embeddings)
    used = np.unique(indices[indices >= 0])
    if len(used) >= _MANY and not is_valid[used].any():
        raise model.broken(kind)
    return np.where((indices >= 0) & np.append(is_valid, False)[indices], indices, -1)


def _with_invalid(
    table: pa.Table, model: ClipModel, rows: Indices, invalid: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
) -> pa.Table:
    """Set the Status of pairs whose picture or caption has an invalid embedding (`invalid`, each of shape [pairs]).
    They remain pairs."""
    picture, caption = invalid
    if not (picture | caption).any():
        return table
    columns = {name: table[name].to_pylist() for name in ("status", "status_detail")}
    for row, of_picture, of_caption in zip(rows, picture, caption, strict=True):
        if (of_picture or of_caption) and columns["status"][row] == Status.OK:
            columns["status"][row] = Status.EMBEDDING_INVALID.value
            what = " and ".join(name for name, bad in (("picture", of_picture), ("caption", of_caption)) if bad)
            columns["status_detail"][row] = f"{model.alias}: embedding of the {what}"
    return _set_columns(table, columns)


def _with_failures(table: pa.Table, rows: Indices, images: Sequence[DecodedImage]) -> pa.Table:
    """Set the Status of rows whose pictures did not decode. These rows are no longer pairs."""
    columns = {name: table[name].to_pylist() for name in ("status", "status_detail", "is_pair")}
    for row, image in zip(rows, images, strict=True):
        columns["status"][row] = image.status.value
        columns["status_detail"][row] = image.detail
        columns["is_pair"][row] = False
    return _set_columns(table, columns)


def _with_image_columns(table: pa.Table, rows: Indices, images: Sequence[DecodedImage | None]) -> pa.Table:
    """Set the columns with the size, hash and `one_color` of pictures."""
    columns: dict[str, list[object]] = {
        name: [None] * table.num_rows for name in ("width", "height", "phash", "one_color")
    }
    for row, image in zip(rows, images, strict=True):
        for name, values in columns.items():
            values[row] = image and getattr(image, name)
    for name in ("width", "height"):  # the orientation of a PNG or WebP is known only after decoding
        known = zip(table[f"original_{name}"].to_pylist(), columns[name], strict=True)
        columns[f"original_{name}"] = [old if new is None else new for old, new in known]
    return _set_columns(table, columns)


def _set_columns(table: pa.Table, columns: dict[str, list[object]]) -> pa.Table:
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    return table
