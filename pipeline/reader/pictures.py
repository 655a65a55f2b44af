"""Reads and decodes the pictures of rows, no matter where the dataset stores them."""

from collections.abc import Iterator

import pyarrow as pa
from PIL import Image

from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.reader.snapshot import DatasetError, Snapshot
from pairmill.schemas.pairs import STORED

_NEEDED_COLUMNS = ("row_id", "sha256", *STORED.names)

_ROWS_AT_ONCE = 256


class Pictures:
    """Reads the pictures of a snapshot's rows. Close it after use."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._reader = snapshot.pairs_reader()
        self._processor = ImageProcessor(snapshot.plan.job.images)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that are needed to find and check a picture."""
        return (*_NEEDED_COLUMNS, *self._reader.checksum)

    def close(self) -> None:
        """Close files and stop threads."""
        self._reader.close()

    def of(self, position: int, rows: pa.Table) -> Iterator[Image.Image | None]:
        """The picture of each row of a shard (with the columns `needed`); None for a row without a picture.

        Raises DatasetError if a picture is missing, is truncated, or has been replaced.
        """
        shard = self._snapshot.chunk.shards[position]
        manifest = self._snapshot.manifest((shard.shard, shard.generation))
        # Tars are read by range; everything else is read a shard at a time.
        size = _ROWS_AT_ONCE if "images" in manifest.files else max(rows.num_rows, 1)
        for start in range(0, rows.num_rows, size):
            some = rows.slice(start, size)
            with self._snapshot.errors():
                bodies = self._reader.pictures(self._snapshot.planned(shard), manifest, some)
            facts = zip(*(some[name].to_pylist() for name in ("row_id", "image_tar", "image_length")), strict=True)
            for body, (row_id, file, length) in zip(bodies, facts, strict=True):
                yield None if file is None else self._decode(body, row_id, file, length)

    def _decode(self, body: bytes | None, row_id: str, file: str, length: int | None) -> Image.Image:
        if body is None or (length is not None and len(body) != length):
            raise DatasetError(f"the picture of row {row_id} has moved or changed: {file}")
        try:
            return Image.fromarray(self._processor.pixels(body))
        except ImageError as error:
            raise DatasetError(f"the picture of row {row_id} in {file} cannot be decoded: {error}") from error
