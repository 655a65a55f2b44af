"""Adds a score to one shard: reads the columns that it needs, computes it, and commits the result."""

from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.columns.commands import score_footer
from pairmill.pipeline.columns.score_card import ScoreCard, read_score_card, read_state
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import describe
from pairmill.pipeline.dataset.chunks import describe as describe_shards
from pairmill.pipeline.dataset.commit import AccountingError
from pairmill.pipeline.dataset.manifests import may_be_superseded, read_manifest
from pairmill.pipeline.score.kind import LEFT_OUT, RowScore
from pairmill.pipeline.score.kinds import kind_of
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.manifest import manifest_name


@dataclass(frozen=True)
class ScoreTask:
    """The inputs that a worker needs to add a score to a shard. Consists of plain values."""

    store: Store
    name: str
    sources: tuple[str, ...]
    """The models and scores in `columns/` whose columns the score reads."""
    run: RunConfig


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """The reason why the score was not added to a shard. Other shards are unaffected."""

    shard: int
    message: str


def score_shard(task: ScoreTask, shard: int, generation: int) -> ShardFailure | None:
    """Add the score to a shard, or return the reason why not. Raises only errors that would occur in every shard."""
    try:
        with may_be_superseded(task.store, shard, generation):
            _score_shard(task, shard, generation)
    except PairmillError as error:
        if error.kind in (FailureKind.JOB, FailureKind.STORAGE):
            raise
        return ShardFailure(shard, str(error))
    except Exception as error:  # errors must not affect other shards
        return ShardFailure(shard, describe(error))
    return None


def score_rows(card: ScoreCard, score: RowScore, rows: pa.Table) -> pa.Table:
    """Compute the columns of a score, with the order and types of its card, and LEFT_OUT if the score has it.

    Raises AccountingError if rows are lost.
    """
    schema = kind_of(card.name, card.score).schema
    made = score(rows)
    if made.num_rows != rows.num_rows:
        raise AccountingError(f"the score {card.name} got {rows.num_rows} rows and returned {made.num_rows}")
    columns = made.select(schema.names).cast(schema)
    return columns.append_column(LEFT_OUT, made[LEFT_OUT]) if LEFT_OUT in made.column_names else columns


_opened: dict[tuple[str, str, RunConfig], RowScore] = {}
_MAX_OPENED = 8


def opened(store: Store, card: ScoreCard, run: RunConfig) -> RowScore:
    """The score, ready to run; opened once per process. Raises ManifestError."""
    key = card.name, card.fingerprint, run
    if key not in _opened:
        while len(_opened) >= _MAX_OPENED:
            _opened.pop(next(iter(_opened)))
        _opened[key] = kind_of(card.name, card.score).open(read_state(store, card), run)
    return _opened[key]


def _score_shard(task: ScoreTask, shard: int, generation: int) -> None:
    card = read_score_card(task.store, task.name)
    manifest = read_manifest(task.store, manifest_name(shard, generation))
    (files,) = (chunk := describe_shards(task.store, [(shard, generation)], task.sources)).shards
    rows = chunk.read(files, kind_of(card.name, card.score).needs.columns | {"row_id"})
    made = score_rows(card, opened(task.store, card, task.run), rows)
    columns = made.add_column(0, "row_id", rows["row_id"])
    write_columns(task.store, card.name, columns, manifest, score_footer(card.name, card.score), card.fingerprint)
