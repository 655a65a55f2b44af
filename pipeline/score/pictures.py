"""Scores by the pixels of pictures: sharpness, exposure, colorfulness, JPEG quality and borders, from one decode."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.common.faults import local_fault
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.isolated import DECODE_TIMEOUT_S
from pairmill.pipeline.image.measure_columns import measure_columns
from pairmill.pipeline.image.measures import VERSION, Measured, measure
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kind import LEFT_OUT, PICTURE, Needs, RowScore, ScoreError
from pairmill.pipeline.select.tasks import Tasks
from pairmill.pipeline.source.mapping import NoPictures, WebPictures
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.pictures import PictureScore
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig


@dataclass(frozen=True)
class Pictures:
    """The kind `pictures`. Columns: NAME_measure for each measure; null if the picture is missing or does not decode,
    and NAME_jpeg_quality also for other formats."""

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> PictureScore:
        """The settings of this kind."""
        assert self.score.pictures is not None
        return self.score.pictures

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Check that the dataset has pictures."""
        check_has_pictures(snapshot)
        return self.score

    @property
    def needs(self) -> Needs:
        """The picture; rows with the same picture are measured once."""
        return Needs(frozenset({"sha256"}), pictures=True)

    @property
    def schema(self) -> pa.Schema:
        """One number per measure, and two more for the exposure."""
        return self.settings.columns(self.name)

    @property
    def files(self) -> list[str]:
        """None."""
        return []

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """The version of the measures, and which pictures are too large."""
        return picture_state(snapshot)

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Start nothing yet: threads run only while rows are scored. Raises ScoreError."""
        if state.values["version"] != VERSION:
            raise ScoreError(
                f"the score {self.name!r} was made by version {state.values['version']} of the measures, and this "
                f"pairmill computes version {VERSION}; add a score with another name"
            )
        return OpenPictures(self.name, self.settings, ImageProcessor(images_of(state)), threads_of(run))


def picture_state(snapshot: Snapshot) -> State:
    """What scores of pictures depend on besides their settings."""
    return State(values={"version": VERSION, "max_pixels": snapshot.plan.job.images.max_pixels})


def images_of(state: State) -> ImagesConfig:
    """How pictures are decoded."""
    return ImagesConfig.model_validate({"max_pixels": state.values["max_pixels"]})


def threads_of(run: RunConfig) -> int:
    """The threads of an encode actor."""
    return run.encode_threads or os.cpu_count() or 1


def check_has_pictures(snapshot: Snapshot) -> None:
    """Raise ScoreError if there is no picture to score."""
    pictures = snapshot.plan.mapping.pictures
    is_stored = not isinstance(pictures, WebPictures) or snapshot.plan.job.images.store != "none"
    if isinstance(pictures, NoPictures) or not is_stored:
        raise ScoreError(f"{snapshot.store.root} has no pictures, so they cannot be scored")


@dataclass(frozen=True)
class OpenPictures:
    """Measures the pictures of rows on several threads: decoding and the measures release the GIL. Thread-safe."""

    name: str
    settings: PictureScore
    processor: ImageProcessor
    threads: int

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The measures of each row's picture, and LEFT_OUT. Raises LocalFault, and TimeoutError if a decoder hangs."""
        first, image_of = distinct_pictures(rows)
        bodies = [rows[PICTURE][row].as_buffer() for row in first]
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="measure")
        try:
            found = [
                future.result(DECODE_TIMEOUT_S) for future in [pool.submit(self._measure, each) for each in bodies]
            ]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        measured = [None if index < 0 else found[index] for index in image_of]
        columns = measure_columns(self.name, self.settings, measured)
        left_out = [index >= 0 and each is None for index, each in zip(image_of, measured, strict=True)]
        return pa.table({**columns, LEFT_OUT: left_out})

    def _measure(self, body: pa.Buffer) -> Measured | None:
        """None if the picture does not decode. An unexpected error costs only its own row, unless this machine is at
        fault."""
        try:
            data = bytes(body)
            return measure(self.processor.pixels(data), data, self.settings.measures)
        except ImageError:
            return None
        except Exception as error:  # the border of a row
            if (fault := local_fault(error)) is not None:
                raise fault from error
            return None


def distinct_pictures(rows: pa.Table) -> tuple[Sequence[int], Sequence[int]]:
    """(the first row of each distinct picture, the picture of each row as an index into these; -1 without one). Rows
    with the same `sha256` have the same picture."""
    seen: dict[str, int] = {}
    first, image_of = list[int](), np.full(rows.num_rows, -1)
    has_picture = rows[PICTURE].is_valid().to_pylist()
    for row, digest in enumerate(rows["sha256"].to_pylist()):
        if not has_picture[row]:
            continue
        key = digest or f"row {row}"
        if key not in seen:
            seen[key] = len(first)
            first.append(row)
        image_of[row] = seen[key]
    return first, image_of.tolist()
