"""Looks rows up in the filters of a build."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.filters import FilterId, filters_of
from pairmill.pipeline.known.key_file import KeyFile
from pairmill.pipeline.known.keys import Mask, lookup_keys
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.node_copy import local_keys
from pairmill.pipeline.known.prepare import read_known
from pairmill.schemas.known import KnownFilter, ValueKind


@dataclass(frozen=True)
class OpenFilters:
    """The filters of one output folder, mapped into memory."""

    files: Sequence[tuple[FilterId, KeyFile]]

    def has(self, *kinds: ValueKind) -> bool:
        """Whether there is a filter of one of these kinds."""
        return any(which.kind in kinds for which, _ in self.files)

    def is_known(self, kind: ValueKind, column: pa.ChunkedArray) -> Mask:
        """For each value of a column, whether it is known; False for null. Shape (rows,)."""
        keys, has_value = lookup_keys(kind, column)
        found = np.zeros(len(keys), np.bool_)
        for which, file in self.files:
            if which.kind == kind:
                found |= which.contains(file, keys)
        return found & has_value

    def first_known(self, rows: pa.Table, kinds: Sequence[ValueKind]) -> list[ValueKind | None]:
        """For each row, the first of these kinds by which it is known, if any."""
        first: list[ValueKind | None] = [None] * rows.num_rows
        for kind in reversed(kinds):
            if self.has(kind):
                for row in np.flatnonzero(self.is_known(kind, rows[kind])).tolist():
                    first[row] = kind
        return first


@lru_cache(maxsize=4)
def open_filters(output: str, files: Files) -> OpenFilters:
    """The filters of an output folder. Raises KnownError if there are none, or if they are damaged."""
    store = Store(output, files.s3)
    record = read_known(store)
    if record is None:
        raise KnownError(f"{store.root} has lost its filters of known rows (the folder known/): restore it from a copy")
    return OpenFilters([(_id(each), KeyFile.open(local_keys(store, each.file))) for each in record.filters])


def _id(each: KnownFilter) -> FilterId:
    (which,) = (which for which in filters_of(each.kind, each.distance) if which.band.first_bit == each.first_bit)
    return which
