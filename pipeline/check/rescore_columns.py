"""Recomputes the scores of some rows in `columns/`, each kind with its own function and stored state."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.columns.score_card import ScoreCard, read_score_card
from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.chunks import ShardFiles
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kind import PICTURE, HasTies, Mask, RowScore
from pairmill.pipeline.score.kinds import kind_of
from pairmill.pipeline.score.prepare import check_sources
from pairmill.pipeline.score.score_shard import opened, score_rows
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.job.run import RunConfig

TOLERANCE = 1e-4
"""Maximum error of a recomputed number, absolute and relative."""


def rescore_columns(
    snapshot: Snapshot, num_rows: int, report: VerifyReport, on_step: OnStep = ignore_step
) -> Iterator[str]:
    """Recompute `num_rows` rows of each added score, evenly spread over the shards. Yields problems."""
    for added in snapshot.added.scores:
        try:
            card = read_score_card(snapshot.store, added.name)
            check_sources(snapshot, card)
            score = opened(snapshot.store, card, RunConfig())
        except PairmillError as error:
            yield str(error)
            continue
        shards = snapshot.chunk.shards
        chosen = spread(num_rows, len(shards))
        for position in chosen:
            on_step(f"recomputing {card.name}", position, len(shards))
            try:
                yield from _rescore_shard(snapshot, card, score, shards[position], -(-num_rows // len(chosen)), report)
            except PairmillError as error:
                yield f"shard {shards[position].shard:09d}: {error}"


def spread(num_rows: int, num_shards: int) -> list[int]:
    """Positions of evenly spread shards: one per row to check, but at most all shards."""
    count = min(num_rows, num_shards)
    return [number * num_shards // count for number in range(count)]


def _rescore_shard(
    snapshot: Snapshot, card: ScoreCard, score: RowScore, shard: ShardFiles, num_rows: int, report: VerifyReport
) -> Iterator[str]:
    kind = kind_of(card.name, card.score)
    columns = [*kind.needs.columns, *kind.schema.names]
    rows = sample_of(snapshot, shard, list(dict.fromkeys(["uid", *columns])), num_rows, kind.needs.pictures)
    if not rows.num_rows:
        return
    made = score_rows(card, score, rows)
    report.scores_recomputed += rows.num_rows
    certain: dict[str, Mask] = score.certain(rows) if isinstance(score, HasTies) else {}
    for name in kind.schema.names:
        wrong = [row for row in differences(rows[name], made[name]) if name not in certain or certain[name][row]]
        if wrong:
            uids = ", ".join(rows["uid"][row].as_py() for row in wrong[:3])
            yield (
                f"shard {shard.shard:09d}: {name} of {counted(len(wrong), 'row')} differs from the "
                f"recomputed values of columns/{card.name}: {uids}"
            )


def sample_of(
    snapshot: Snapshot, shard: ShardFiles, columns: Sequence[str], num_rows: int, with_pictures: bool
) -> pa.Table:
    """The rows with the lowest uids, so that every run checks the same rows."""
    uids = snapshot.read(shard, ["uid"])["uid"]
    lowest = np.sort(pc.sort_indices(uids).to_numpy()[:num_rows]).astype(np.int64)
    if not with_pictures:
        return take_rows(snapshot.read(shard, columns), lowest)
    reader = snapshot.pairs_reader()
    try:
        manifest = snapshot.manifest((shard.shard, shard.generation))
        pairs = take_rows(reader.read(snapshot.planned(shard), manifest), lowest)
    finally:
        reader.close()
    return take_rows(snapshot.read(shard, columns), lowest).append_column(PICTURE, pairs[PICTURE])


def differences(stored: pa.ChunkedArray, made: pa.ChunkedArray) -> list[int]:
    """Indices of the rows whose values differ."""
    if pa.types.is_floating(stored.type):
        old, new = (each.fill_null(np.nan).to_numpy().astype(np.float64) for each in (stored, made))
        is_same = np.isclose(old, new, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        return [int(row) for row in np.flatnonzero(~is_same)]
    both = zip(stored.to_pylist(), made.to_pylist(), strict=True)
    return [row for row, (old, new) in enumerate(both) if not _is_same(old, new)]


def _is_same(old: object, new: object) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_is_same, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return bool(np.isclose(old, new, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
    return old == new
