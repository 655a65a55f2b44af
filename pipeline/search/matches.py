"""Reads the rows that a search found."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.dataset.subset import read_subset, selected_rows
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.reader.thumbnails import RowRef
from pairmill.pipeline.reader.uid_finder import UidFinder
from pairmill.pipeline.search.errors import SearchError
from pairmill.pipeline.search.vector_index import RowMask
from pairmill.pipeline.source.uid import own_uid

_COLUMNS = ("uid", "row_id", "caption", "url")


@dataclass(frozen=True, slots=True)
class Match:
    """A row that was found. Caption and URL are untrusted text."""

    uid: str
    row_id: str
    score: float
    """The cosine between its embedding and the query's."""
    caption: str | None
    """The raw caption, as in the input."""
    url: str | None

    def as_dict(self) -> dict[str, object]:
        """The match as plain JSON values."""
        return asdict(self)


def positions_of(snapshot: Snapshot, rows: Sequence[int]) -> list[RowRef]:
    """The positions of the rows with these indices."""
    starts = np.array([span.start for _, span in snapshot.chunk.spans()], np.int64) + snapshot.chunk.first_row_index
    shards = np.searchsorted(starts, rows, side="right") - 1
    return [RowRef(int(shard), int(row - starts[shard])) for shard, row in zip(shards, rows, strict=True)]


def read_matches(snapshot: Snapshot, positions: Sequence[RowRef], scores: Sequence[float]) -> list[Match]:
    """The rows at these positions, in the same order. Raises DatasetError."""
    by_shard: dict[int, list[int]] = defaultdict(list)
    for number, place in enumerate(positions):
        by_shard[place.position].append(number)
    found: dict[int, Match] = {}
    for shard, numbers in by_shard.items():
        table: pa.Table = snapshot.read(snapshot.chunk.shards[shard], _COLUMNS)
        some = take_rows(table, np.array([positions[number].row for number in numbers], np.int64))
        for number, values in zip(numbers, some.to_pylist(), strict=True):
            found[number] = Match(score=float(scores[number]), **values)
    return [found[number] for number in range(len(positions))]


def find_uid(snapshot: Snapshot, uid: str) -> RowRef:
    """The position of the first row with this uid, 32 hex characters or a UUID. Raises SearchError if there is none."""
    stored = own_uid(uid)
    shards = snapshot.chunk.shards
    finder = UidFinder(len(shards), lambda position: snapshot.read(shards[position], ["uid"])["uid"])
    if stored is None or (found := finder.find(stored)) is None:
        raise SearchError(f"{snapshot.store.root} has no row with the uid {uid[:100]!r}")
    return RowRef(*found)


def subset_mask(snapshot: Snapshot, name: str) -> RowMask:
    """Whether each row is in the subset, by row index: bool [rows]. Raises SubsetError."""
    bits = selected_rows(snapshot.chunk, read_subset(snapshot.store, name))
    counts = [shard.num_rows for shard in snapshot.chunk.shards]
    masks = [np.unpackbits(packed, count=count) for packed, count in zip(bits, counts, strict=True)]
    return np.concatenate([np.zeros(0, np.uint8), *masks]).astype(np.bool_)
