"""Compares pictures that are about to be stored with the ledger's PDQ hashes, if their rows have none."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from pairmill.pipeline.known.keys import PDQ
from pairmill.pipeline.purge.matching import Mask, Matcher
from pairmill.pipeline.purge.pdq import has_hash
from pairmill.pipeline.score.kind import RowScore
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.pictures import PictureScore
from pairmill.schemas.pairs import IMAGE_COLUMN, IS_PAIR_COLUMN

_ROWS = 256
"""Number of rows whose pictures are copied at a time."""


@dataclass(frozen=True)
class PictureHashes:
    """Computes PDQ hashes. `images`: the job's limits for pictures; `threads`: how many decode them."""

    images: ImagesConfig
    threads: int

    def withdrawn(self, matcher: Matcher, table: pa.Table) -> Mask:
        """Which pairs of an in-flight table have a withdrawn picture, of those whose row has no readable hash: bool
        [rows]. Raises LocalFault, and TimeoutError on a hang."""
        lacking = (
            table[IS_PAIR_COLUMN.name].to_numpy() & table[IMAGE_COLUMN.name].is_valid().to_numpy() & ~has_hash(table)
        )
        found, rows = np.zeros(table.num_rows, np.bool_), np.flatnonzero(lacking)
        pictures = table.select([IMAGE_COLUMN.name, "sha256"])
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            found[part] = matcher.pdq.has_near(self._score(pictures.take(pa.array(part))))
        return found

    @cached_property
    def _score(self) -> RowScore:
        """What `pairmill score --score 'pictures: pdq'` computes. Imported only if the ledger has such hashes."""
        from pairmill.pipeline.image.processor import ImageProcessor
        from pairmill.pipeline.score.pictures import OpenPictures

        return OpenPictures(PDQ, PictureScore(measures=[PDQ]), ImageProcessor(self.images), self.threads)
