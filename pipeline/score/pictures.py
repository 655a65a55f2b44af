"""Scores pictures by their pixels: sharpness, exposure, colorfulness, JPEG quality and borders, decoding each once."""

from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.image.measure_columns import measure_columns
from pairmill.pipeline.image.measures import VERSION, Measured, measure
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kind import LEFT_OUT, Needs, NoFiles, RowScore, ScoreError
from pairmill.pipeline.score.picture_rows import check_has_pictures, decoding_of, each_picture, images_of, threads_of
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.pictures import PictureScore
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig


@dataclass(frozen=True)
class Pictures(NoFiles):
    """The kind `pictures`. Columns: NAME_measure for each measure; null if the picture is missing or does not decode.
    NAME_jpeg_quality is also null for other formats."""

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
        """The picture, and its checksum: rows with the same picture are measured once."""
        return Needs(frozenset({"sha256"}), pictures=True)

    @property
    def schema(self) -> pa.Schema:
        """One column per measure, and two more for the exposure."""
        return self.settings.columns(self.name)

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Record the version of the measures and the size limit for pictures."""
        return State(values={"version": VERSION, **decoding_of(snapshot)})

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Check the version of the measures. Threads run only while rows are scored. Raises ScoreError."""
        if state.values["version"] != VERSION:
            raise ScoreError(
                f"the score {self.name!r} was made by version {state.values['version']} of the measures, but this "
                f"pairmill computes version {VERSION}; add the score under another name"
            )
        return OpenPictures(self.name, self.settings, ImageProcessor(images_of(state)), threads_of(run))


@dataclass(frozen=True)
class OpenPictures:
    """Measures the pictures of rows on several threads: decoding and the measures release the GIL. Thread-safe."""

    name: str
    settings: PictureScore
    processor: ImageProcessor
    threads: int

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the measures of each row's picture, and LEFT_OUT. Raises LocalFault, and TimeoutError on a hang."""
        pictures = each_picture(rows, self._measure, self.threads)
        return pa.table({**measure_columns(self.name, self.settings, pictures.per_row), LEFT_OUT: pictures.left_out})

    def _measure(self, body: bytes) -> Measured:
        return measure(self.processor.pixels(body), body, self.settings.measures)
