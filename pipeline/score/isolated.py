"""Scores pictures in a child process, for shards that crashed their worker. Only rows with a fatal picture are lost."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pairmill.pipeline.columns.score_card import ScoreCard, read_score_card
from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.common.child import Child, ChildDied
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.image.isolated import DECODE_TIMEOUT_S
from pairmill.pipeline.score.kind import LEFT_OUT, PICTURE, RowScore
from pairmill.pipeline.score.kinds import kind_of
from pairmill.pipeline.score.score_shard import opened
from pairmill.schemas.job.run import RunConfig

_score: RowScore | None = None


@dataclass
class IsolatedScore:
    """A RowScore that scores one row at a time in a child process, several times slower. Close it after use."""

    store: Store
    card: ScoreCard
    run: RunConfig
    timeout_s: float = DECODE_TIMEOUT_S
    _child: Child = field(init=False)

    def __post_init__(self) -> None:
        self._child = Child(_start, self.store, self.card.name, self.run)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the columns of the score and LEFT_OUT, with nulls where the child died or hung on a picture."""
        schema = pa.schema([*kind_of(self.card.name, self.card.score).schema, (LEFT_OUT, pa.bool_())])
        if not rows.num_rows:
            return schema.empty_table()
        made = [self._score_row(take_rows(rows, np.array([row])), schema) for row in range(rows.num_rows)]
        return pa.concat_tables([each.select(schema.names).cast(schema) for each in made])

    def close(self) -> None:
        """Stop the child."""
        self._child.close()

    def _score_row(self, row: pa.Table, schema: pa.Schema) -> pa.Table:
        if row[PICTURE].null_count:
            return _nulls(schema, left_out=False)
        try:
            made: pa.Table = self._child.call(_score_row, row, timeout_s=self.timeout_s)
        except ChildDied:
            return _nulls(schema, left_out=True)
        return made


def _nulls(schema: pa.Schema, left_out: bool) -> pa.Table:
    return pa.table([pa.array([left_out if each.name == LEFT_OUT else None], each.type) for each in schema], schema)


def _start(store: Store, name: str, run: RunConfig) -> None:
    global _score
    _score = opened(store, read_score_card(store, name), run)


def _score_row(row: pa.Table) -> pa.Table:
    assert _score is not None
    return _score(row)
