"""Finds the rows of a dataset that have labels, and reads other columns of these rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.text import clean_text, counted
from pairmill.pipeline.dataset.chunks import ShardFiles
from pairmill.pipeline.dataset.subset import read_subset, selected_rows
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.labels import Labels
from pairmill.pipeline.reader.snapshot import Snapshot

Booleans = npt.NDArray[np.bool_]

_PAIRS_OF_WORDS = (("good", "bad"), ("yes", "no"), ("true", "false"), ("1", "0"))
"""(positive, negative) labels with an obvious meaning."""
_SHOWN_VALUES = 8


class LabeledRows(NamedTuple):
    """The labeled rows of one shard."""

    rows: pa.Table
    labels: pa.Array
    """bool, int64 or string, without nulls."""


class Target(NamedTuple):
    """Labels, divided into positive and negative ones."""

    name: str
    """Name of the positive label."""
    is_positive: Booleans
    """Whether each label is positive [n]."""


@dataclass(frozen=True)
class RowFilter:
    """The rows of a dataset that an evaluation uses."""

    snapshot: Snapshot
    subset: str | None = None
    """Use only the rows of this subset; None: all rows."""

    def masks(self) -> Iterator[tuple[ShardFiles, Booleans]]:
        """Each shard, with a mask of its rows. Raises SubsetError."""
        shards = self.snapshot.chunk.shards
        if self.subset is None:
            yield from ((shard, np.ones(shard.num_rows, np.bool_)) for shard in shards)
            return
        subset = read_subset(self.snapshot.store, self.subset)
        for shard, packed in zip(shards, selected_rows(self.snapshot.chunk, subset), strict=True):
            yield shard, np.unpackbits(packed, count=shard.num_rows).astype(np.bool_)


def labeled_rows(
    chosen: RowFilter, labels: Labels, columns: Sequence[str], on_step: OnStep = ignore_step
) -> Iterator[LabeledRows]:
    """The rows with a label, shard by shard, with `columns` and `uid`. For shards without labels, reads only the
    columns needed to find labels. Raises DatasetError and SubsetError."""
    snapshot, wanted = chosen.snapshot, sorted({*columns, "uid"})
    shards = list(chosen.masks())

    def look_up(shard: tuple[ShardFiles, Booleans]) -> pa.Table:
        return snapshot.read(shard[0], sorted(labels.columns))

    for number, ((shard, mask), rows) in enumerate(zip(shards, snapshot.map(look_up, shards), strict=True)):
        on_step("reading labels", number, len(shards))
        inside = np.flatnonzero(mask)
        found = labels.find(take_rows(rows, inside))
        is_valid = found.is_valid()
        if kept := is_valid.true_count:
            used = inside[is_valid.to_numpy(zero_copy_only=False)]
            values = snapshot.read(shard, wanted)
            yield LabeledRows(values if kept == len(mask) else take_rows(values, used), found.drop_null())


def target_of(labels: pa.Array, positive: str | None = None) -> Target:
    """Divide labels [n] without nulls into positive and negative ones. The positive label is `positive` if given,
    otherwise true, 1, good or yes. All other labels are negative.

    Raises EvaluateError if it is not clear which label is positive, or if all labels are positive or all negative.
    """
    texts = labels.cast(pa.string())
    values = sorted(texts.unique().to_pylist())
    if not values:
        raise EvaluateError("no row of the dataset has a label")
    if positive is not None and positive not in values:
        raise EvaluateError(f"no label is {positive!r}; the labels are: {_listed(values)}")
    wanted = _positive_of(values) if positive is None else positive
    mask: Booleans = pc.equal(texts, wanted).to_numpy(zero_copy_only=False).astype(np.bool_)
    if mask.all() or not mask.any():
        raise EvaluateError(f"{counted(len(labels), 'label')}, all {_listed(values)}; label some rows differently")
    is_plain = positive is None and pa.types.is_boolean(labels.type)
    return Target("good" if is_plain else wanted, mask)


def _positive_of(values: list[str]) -> str:
    folded = {value.casefold(): value for value in values}
    for good, bad in _PAIRS_OF_WORDS:
        if len(folded) == len(values) and folded.keys() <= {good, bad}:
            return folded.get(good, good)
    how_many = f"{len(values):,} distinct values" if len(values) > 2 else "values"
    raise EvaluateError(f"the labels have {how_many} ({_listed(values)}): name the positive one with --positive VALUE")


def _listed(values: Sequence[str]) -> str:
    shown = ", ".join(repr(clean_text(value, 40) or value[:40]) for value in values[:_SHOWN_VALUES])
    return shown + (", ..." if len(values) > _SHOWN_VALUES else "")
