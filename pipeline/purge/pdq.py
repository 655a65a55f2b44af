"""Finds rows whose PDQ hash (256 bits) is near a listed hash, by Hamming distance.

Hashes that differ in up to 31 bits usually count as a match: https://github.com/facebook/ThreatExchange, pdq/README.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.image.pdq import MATCH_DISTANCE, MIN_QUALITY
from pairmill.pipeline.known.hash_index import HashIndex, hash_words, is_hash
from pairmill.pipeline.known.keys import PDQ, PDQ_QUALITY, PDQ_WORDS, is_text

PDQ_COLUMNS = frozenset({PDQ, PDQ_QUALITY})


@dataclass(frozen=True)
class PdqIndex:
    """A list of hashes that rows are compared with."""

    hashes: HashIndex

    @classmethod
    def of(cls, digits: Iterable[str]) -> "PdqIndex":
        """The index of hashes of 64 hex digits."""
        return cls(HashIndex.of(hash_words(pa.array(list(digits), pa.string()), PDQ_WORDS), MATCH_DISTANCE))

    def has_near(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Whether the hash of each row is within MATCH_DISTANCE of a listed hash: bool [rows]. False for null and for
        anything else that is not a hash."""
        found = np.zeros(rows.num_rows, np.bool_)
        if not is_text(rows[PDQ].type):
            return found
        column = comparable(rows)[PDQ].cast(pa.string())
        valid = is_hash(column, PDQ_WORDS)
        found[valid] = self.hashes.has_near(hash_words(column.filter(pa.array(valid)), PDQ_WORDS))
        return found


def comparable(rows: pa.Table) -> pa.Table:
    """The rows with null for the hashes of pictures that are too plain: such a hash is meaningless, and all plain
    pictures have the same hash."""
    if PDQ_COLUMNS - set(rows.column_names):
        return rows
    hashes, quality = rows[PDQ], rows[PDQ_QUALITY]
    if not is_text(hashes.type) or not pa.types.is_integer(quality.type):  # the user's own columns
        return rows
    is_plain = pc.less(quality, MIN_QUALITY).fill_null(False)
    known = pc.if_else(is_plain, pa.scalar(None, pa.string()), hashes.cast(pa.string()))
    return rows.set_column(rows.schema.get_field_index(PDQ), PDQ, known)


def has_hash(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Whether the column `pdq` of each row is a hash, of any quality: bool [rows]. The column can be missing, and users
    can have their own."""
    if PDQ not in rows.column_names or not is_text(rows[PDQ].type):
        return np.zeros(rows.num_rows, np.bool_)
    return is_hash(rows[PDQ], PDQ_WORDS)
