"""Works on the pictures of rows: each picture once, on several threads, and a failure costs only its own rows."""

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
    """A result per distinct picture."""

    found: Sequence[Found | None]
    """None: the picture does not decode."""
    picture_of: Sequence[int]
    """For each row, the index of its picture; -1 if it has none."""

    @property
    def per_row(self) -> list[Found | None]:
        """The result of each row's picture; None without one."""
        return [None if index < 0 else self.found[index] for index in self.picture_of]

    @property
    def left_out(self) -> pa.Array:
        """LEFT_OUT of each row."""
        return pa.array([index >= 0 and self.found[index] is None for index in self.picture_of], pa.bool_())


def each_picture(rows: pa.Table, work: Callable[[bytes], Found], threads: int) -> OfPictures[Found]:
    """Call `work` with the bytes of each distinct picture; it may raise ImageError. Rows with the same `sha256` have
    the same picture. Raises LocalFault, and TimeoutError if a call hangs."""
    first, picture_of = _distinct_pictures(rows)
    bodies = [rows[PICTURE][row].as_buffer() for row in first]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="score")
    try:
        futures = [pool.submit(_safely, work, body) for body in bodies]
        return OfPictures([future.result(DECODE_TIMEOUT_S) for future in futures], picture_of)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def threads_of(run: RunConfig) -> int:
    """The threads of an encode actor."""
    return run.encode_threads or os.cpu_count() or 1


def decoding_of(snapshot: Snapshot) -> dict[str, object]:
    """The values of a state that say which pictures are too large."""
    return {_MAX_PIXELS: snapshot.plan.job.images.max_pixels}


def images_of(state: State) -> ImagesConfig:
    """How pictures are decoded."""
    return ImagesConfig.model_validate({"max_pixels": state.values[_MAX_PIXELS]})


def check_has_pictures(snapshot: Snapshot) -> None:
    """Raise ScoreError if there is no picture to score."""
    pictures = snapshot.plan.mapping.pictures
    is_stored = not isinstance(pictures, WebPictures) or snapshot.plan.job.images.store != "none"
    if isinstance(pictures, NoPictures) or not is_stored:
        raise ScoreError(f"{snapshot.store.root} has no pictures, so they cannot be scored")


def _safely(work: Callable[[bytes], Found], body: pa.Buffer) -> Found | None:
    """None if the picture does not decode. An unexpected error costs only its own rows, unless this machine is at
    fault."""
    try:
        return work(bytes(body))
    except ImageError:
        return None
    except Exception as error:  # the border of a row
        if (fault := local_fault(error)) is not None:
            raise fault from error
        return None


def _distinct_pictures(rows: pa.Table) -> tuple[list[int], list[int]]:
    """(the first row of each distinct picture, the picture of each row as an index into these; -1 without one)."""
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
