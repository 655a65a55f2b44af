"""Shows evaluation pictures beside the rows in which the steps `leak` of a subset found them."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow.compute as pc

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.leak.notes import leak_notes
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.reader.thumbnails import RowRef, Thumbnail, Thumbnails
from pairmill.pipeline.report.source import Source
from pairmill.pipeline.report.summary import Ref
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.leak import Leak, LeakPair, LeakReport

SIDE = 240
"""Maximum width and height of an evaluation picture, in pixels."""
PAIRS_PER_WAY = 3
_GONE = Thumbnail(None, problem="the evaluation set can no longer be read")
_NO_PAIR = Thumbnail(None, problem="the evaluation set does not store this picture")


@dataclass(frozen=True)
class Twins:
    """An evaluation picture and the row that contains it."""

    how: str
    """How near the two are, and by which measure."""
    item: Thumbnail
    item_name: str
    ref: Ref


@dataclass(frozen=True)
class LeakGroup:
    """The pairs that one step found."""

    title: str
    about: str
    pairs: Sequence[Twins]


def leak_groups(source: Source) -> Iterator[LeakGroup]:
    """One group per step `leak`."""
    assert source.subset is not None
    for step, report in zip(source.subset.steps, source.subset.reports[2:], strict=False):
        if step.leak is not None and report.leak is not None:
            chosen = list(_chosen(source.snapshot, report.leak))
            items = _item_pictures(step.leak, [pair for pair, _ in chosen], source.snapshot.store)
            pairs = [
                Twins(_how(pair), item, pair.item_url or f"row {pair.item_row_id}", ref)
                for (pair, ref), item in zip(chosen, items, strict=True)
            ]
            yield LeakGroup(report.step, _about(report.leak), pairs)


def _chosen(snapshot: Snapshot, report: LeakReport) -> Iterator[tuple[LeakPair, Ref]]:
    """The nearest pairs for each way of comparing, if their rows still exist."""
    taken = dict[tuple[str, str], int]()
    for pair in report.nearest:
        way = (pair.by, pair.variant)
        if taken.get(way, 0) < PAIRS_PER_WAY and (place := _place(snapshot, pair.row_id)):
            taken[way] = taken.get(way, 0) + 1
            yield pair, Ref("pairs", *place)


def _place(snapshot: Snapshot, row_id: str) -> RowRef | None:
    """The position of a row; None if it no longer exists."""
    number = int(row_id.partition(":")[0])
    shards = snapshot.chunk.shards
    position = next((at for at, each in enumerate(shards) if each.shard == number), None)
    if position is None:
        return None
    row = pc.index(snapshot.read(shards[position], ["row_id"])["row_id"], row_id).as_py()
    return None if row < 0 else RowRef(position, row)


def _item_pictures(leak: Leak, pairs: Sequence[LeakPair], store: Store) -> Sequence[Thumbnail]:
    """The evaluation pictures, or the reason why they cannot be shown: the set may no longer exist."""
    try:
        snapshot = Snapshot.of(Store(leak.against, store.files.s3))
        places = [_place(snapshot, pair.item_row_id) for pair in pairs]
        with closing(Thumbnails(snapshot, SIDE)) as reader:
            found = reader.of(place for place in places if place is not None)
    except (PairmillError, OSError):
        return [_GONE] * len(pairs)
    return [_NO_PAIR if place is None else found[place] for place in places]


def _how(pair: LeakPair) -> str:
    variant = "" if pair.variant == "same" else f"{pair.variant.replace('_', ' and ')}, "
    if pair.cosine is not None:
        return f"cosine {pair.cosine:.3f}"
    return "the same file" if pair.distance is None else f"{variant}{pair.by} {counted(pair.distance, 'bit')}"


def _about(report: LeakReport) -> str:
    share = report.items_hit / max(1, report.items)
    found = f"{report.items_hit:,} of {counted(report.items, 'evaluation picture')} found ({share:.2%})"
    return " ".join(f"{line}." for line in [found, *leak_notes(report)])
