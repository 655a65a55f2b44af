"""Makes small copies of stored pictures. Each picture is read once, with a range read if it is in a tar of the
dataset."""

from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pairmill.pipeline.columns.pairs_reader import PairsReader
from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.reader.snapshot import DatasetError, Snapshot
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.pairs import STORED

_ROWS_AT_ONCE = 64


class RowRef(NamedTuple):
    """One row of a snapshot."""

    position: int
    """Position of its shard in the snapshot."""
    row: int
    """Row in the shard's pairs file."""


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG, or the reason why there is none."""

    jpeg: bytes | None
    width: int = 0
    height: int = 0
    problem: str | None = None

    @property
    def data_uri(self) -> str | None:
        """The picture as a data: URI; None if there is none."""
        return f"data:image/jpeg;base64,{b64encode(self.jpeg).decode()}" if self.jpeg else None


class Thumbnails:
    """Makes thumbnails of a snapshot's rows. Thread-safe. Close it after use."""

    def __init__(self, snapshot: Snapshot, side: int) -> None:
        """`side`: maximum width and height in pixels."""
        self._snapshot = snapshot
        self._reader: PairsReader = snapshot.pairs_reader()
        max_pixels = snapshot.plan.job.images.max_pixels
        config = ImagesConfig(size=side, quality=80, chroma="420", reencode="always", max_pixels=max_pixels)
        self._processor = ImageProcessor(config)

    def close(self) -> None:
        """Close files and stop threads."""
        self._reader.close()

    def of(self, rows: Iterable[RowRef]) -> Mapping[RowRef, Thumbnail]:
        """The thumbnail of each row, made shard by shard. A picture that cannot be shown does not affect the others."""
        by_shard: dict[int, list[int]] = defaultdict(list)
        for position, row in sorted(set(rows)):
            by_shard[position].append(row)
        groups = [(position, found[i : i + _ROWS_AT_ONCE]) for position, found in by_shard.items()
                  for i in range(0, len(found), _ROWS_AT_ONCE)]  # fmt: skip
        return {ref: thumbnail for made in self._snapshot.map(self._shard, groups) for ref, thumbnail in made}

    def _shard(self, group: tuple[int, list[int]]) -> list[tuple[RowRef, Thumbnail]]:
        position, rows = group
        refs = [RowRef(position, row) for row in rows]
        return list(zip(refs, map(self._thumbnail, self._bodies(position, rows)), strict=True))

    def _bodies(self, position: int, rows: list[int]) -> Iterator[bytes | str]:
        """Each row's picture, or the reason why there is none."""
        shard = self._snapshot.chunk.shards[position]
        needed = ["row_id", "sha256", *STORED.names, *self._reader.checksum]
        try:
            table: pa.Table = take_rows(self._snapshot.read(shard, needed), np.asarray(rows))
            manifest = self._snapshot.manifest((shard.shard, shard.generation))
            with self._snapshot.errors():
                bodies = self._reader.pictures(self._snapshot.planned(shard), manifest, table)
        except DatasetError:
            yield from ["unreadable: pairmill verify shows why"] * len(rows)
            return
        for body, file in zip(bodies, table["image_tar"].to_pylist(), strict=True):
            yield body or ("no picture stored" if file is None else "missing or changed")

    def _thumbnail(self, body: bytes | str) -> Thumbnail:
        if isinstance(body, str):
            return Thumbnail(None, problem=body)
        made = self._processor.process(body)
        if made.image is None or made.width is None or made.height is None:
            return Thumbnail(None, problem=f"cannot be decoded: {made.detail or made.status}")
        return Thumbnail(made.image, made.width, made.height)
