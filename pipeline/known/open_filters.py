"""Looks rows up in the filters of a build."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.keys import Mask, row_keys
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.lookup import FilterId, Lookup, filters_of
from pairmill.pipeline.known.node_copy import local_keys
from pairmill.pipeline.known.prepare import read_known
from pairmill.schemas.known import KnownFilter, ValueKind


@dataclass(frozen=True)
class OpenFilters:
    """The filters of one output folder, mapped into memory."""

    files: Sequence[tuple[FilterId, Lookup]]

    def has(self, *kinds: ValueKind) -> bool:
        """Whether there is a filter of one of these kinds."""
        return any(which.kind in kinds for which, _ in self.files)

    def is_known(self, kind: ValueKind, rows: pa.Table) -> Mask:
        """For each row, whether its value is known; False for null. Shape (rows,)."""
        keys, has_value = row_keys(kind, rows)
        found, keys = np.zeros(len(has_value), np.bool_), keys[has_value]
        for which, lookup in self.files:
            if which.kind == kind:
                found[has_value] |= lookup.contains(keys)
        return found

    def first_known(self, rows: pa.Table, kinds: Sequence[ValueKind]) -> list[ValueKind | None]:
        """For each row, the first of these kinds whose value is known; None if there is none."""
        first: list[ValueKind | None] = [None] * rows.num_rows
        for kind in reversed(kinds):
            if self.has(kind):
                for row in np.flatnonzero(self.is_known(kind, rows)).tolist():
                    first[row] = kind
        return first


@lru_cache(maxsize=4)
def open_filters(output: str, files: Files) -> OpenFilters:
    """Open the filters of an output folder. Raises KnownError if there are none or they are damaged."""
    store = Store(output, files.s3)
    record = read_known(store)
    if record is None:
        raise KnownError(f"{store.root} has lost its filters of known rows: restore the folder known/ from a copy")
    return OpenFilters([(which := _id(each), which.open(local_keys(store, each.file))) for each in record.filters])


def _id(each: KnownFilter) -> FilterId:
    (which,) = (which for which in filters_of(each.kind, each.distance) if which.band.first_bit == each.first_bit)
    return which
