"""Processes the pictures of rows: each picture once, on several threads. A failure affects only its own rows."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import pyarrow as pa

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.common.faults import local_fault
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.isolated import DECODE_TIMEOUT_S
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kind import PICTURE, ScoreError
from pairmill.pipeline.source.mapping import NoPictures, WebPictures
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.run import RunConfig

_MAX_PIXELS = "max_pixels"

Found = TypeVar("Found")


@dataclass(frozen=True)
class OfPictures(Generic[Found]):
    """One result per distinct picture."""

    found: Sequence[Found | None]
    """The results; None for a picture that does not decode."""
    picture_of: Sequence[int]
    """For each row, the index of its picture; -1 if it has no picture."""

    @property
    def per_row(self) -> list[Found | None]:
        """The result of each row's picture; None if there is none."""
        return [None if index < 0 else self.found[index] for index in self.picture_of]

    @property
    def left_out(self) -> pa.Array:
        """The column LEFT_OUT."""
        return pa.array([index >= 0 and self.found[index] is None for index in self.picture_of], pa.bool_())


def each_picture(rows: pa.Table, work: Callable[[bytes], Found], threads: int) -> OfPictures[Found]:
    """Call `work`, which may raise ImageError, with the bytes of each distinct picture.

    Rows with the same `sha256` have the same picture. Raises LocalFault, and TimeoutError if a call hangs.
    """
    first, picture_of = _distinct_pictures(rows)
    bodies = [rows[PICTURE][row].as_buffer() for row in first]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="score")
    try:
        futures = [pool.submit(_safely, work, body) for body in bodies]
        return OfPictures([future.result(DECODE_TIMEOUT_S) for future in futures], picture_of)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def threads_of(run: RunConfig) -> int:
    """The number of threads of an encode actor."""
    return run.encode_threads or os.cpu_count() or 1


def decoding_of(snapshot: Snapshot) -> dict[str, object]:
    """The values of a state that determine which pictures are too large."""
    return {_MAX_PIXELS: snapshot.plan.job.images.max_pixels}


def images_of(state: State) -> ImagesConfig:
    """The settings for decoding pictures, from the values of a state."""
    return ImagesConfig.model_validate({"max_pixels": state.values[_MAX_PIXELS]})


def check_has_pictures(snapshot: Snapshot) -> None:
    """Raise ScoreError if the dataset has no pictures to score."""
    pictures = snapshot.plan.mapping.pictures
    is_stored = not isinstance(pictures, WebPictures) or snapshot.plan.job.images.store != "none"
    if isinstance(pictures, NoPictures) or not is_stored:
        raise ScoreError(f"{snapshot.store.root} has no pictures to score")


def _safely(work: Callable[[bytes], Found], body: pa.Buffer) -> Found | None:
    """Call `work`; return None if the picture does not decode. An unexpected error affects only the rows with this
    picture, unless this machine is at fault."""
    try:
        return work(bytes(body))
    except ImageError:
        return None
    except Exception as error:  # errors must not affect other rows
        if (fault := local_fault(error)) is not None:
            raise fault from error
        return None


def _distinct_pictures(rows: pa.Table) -> tuple[list[int], list[int]]:
    """(first row of each distinct picture, for each row the index of its picture in that list or -1 if it has none)."""
    seen: dict[str, int] = {}
    first, picture_of = list[int](), list[int]()
    has_picture = rows[PICTURE].is_valid().to_pylist()
    for row, digest in enumerate(rows["sha256"].to_pylist()):
        if not has_picture[row]:
            picture_of.append(-1)
            continue
        key = digest or f"row {row}"
        if key not in seen:
            seen[key] = len(first)
            first.append(row)
        picture_of.append(seen[key])
    return first, picture_of
