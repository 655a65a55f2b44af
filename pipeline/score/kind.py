"""Defines the interface of a kind of score."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

PICTURE = "image"
"""The column with a pair's encoded picture (large_binary, null if there is none), for kinds that need pixels."""


class ScoreError(PairmillError, ValueError):
    """The score cannot be computed as asked; the message says what to do."""

    kind = FailureKind.JOB


LEFT_OUT = "pairmill left out"
"""A column that a kind which needs pictures adds to its result: True where there is a picture that cannot be scored. It
is not stored, but counted in the manifest of the columns."""


@dataclass(frozen=True)
class Needs:
    """What a score reads of each pair."""

    columns: frozenset[str]
    """Columns of the pairs, and of models and other scores that were added."""
    pictures: bool = False
    """Whether the rows also have the column PICTURE."""
    gpu: bool = False
    """Whether it runs on a GPU if there is one."""
    all_rows: bool = False
    """Whether its state is made from rows of the whole dataset, so that those that are missing then stay without part
    in it."""


RowScore = Callable[[pa.Table], pa.Table]
"""Rows with the columns that the kind needs -> its columns, with the same rows. Values depend on the row alone, not on
the other rows in the table. A value is null if the row lacks what the score needs."""


ROUNDING = 1e-5
"""Cosines of a row that differ by less may be in another order on another machine."""


@runtime_checkable
class HasTies(Protocol):
    """A RowScore with columns, such as the best class, that rounding can change where two values almost tie."""

    def certain(self, rows: pa.Table) -> dict[str, Mask]:
        """Column -> the rows whose value is certain [rows]. Columns that are not there always are."""


class ScoreKind(Protocol):
    """One kind of score, with its name and settings. Plain values, so that it can be sent to workers."""

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """The settings with every default filled in from the dataset, and absolute paths, so that they mean the same in
        every process. Raises ScoreError if the dataset lacks what the score needs."""

    @property
    def needs(self) -> Needs:
        """What it reads. Called only with resolved settings, like everything below."""

    @property
    def schema(self) -> pa.Schema:
        """The columns that it makes: NAME, or NAME_... each."""

    @property
    def files(self) -> list[str]:
        """The user's files that the state is made from. They must not change between runs."""

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Everything but the row that the values depend on. Raises ScoreError."""

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Get ready to score rows in this process."""


class NoFiles:
    """A kind whose state is made from the dataset alone."""

    @property
    def files(self) -> list[str]:
        """None."""
        return []


class OneNumber:
    """A kind with one column: NAME, float32."""

    name: str

    @property
    def schema(self) -> pa.Schema:
        """One number."""
        return pa.schema([pa.field(self.name, pa.float32())])


def float_column(values: Floats, is_valid: Mask) -> pa.Array:
    """float32 [rows] -> an Arrow array, null where `is_valid` [rows] is False or the value is NaN or infinite."""
    return pa.array(values, pa.float32(), mask=~(is_valid & np.isfinite(values)))
