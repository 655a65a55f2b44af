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
    """The score cannot be computed as requested; the message says what to do."""

    kind = FailureKind.JOB


LEFT_OUT = "pairmill left out"
"""A column in the results of kinds that need pictures: True where the picture cannot be scored. The column is not
stored; the manifest of the columns counts these rows."""


@dataclass(frozen=True)
class Needs:
    """The inputs and resources that a score needs."""

    columns: frozenset[str]
    """Columns of the pairs, added models and other scores."""
    pictures: bool = False
    """Whether the rows also have the column PICTURE."""
    gpu: bool = False
    """Whether the score runs on a GPU if there is one."""
    all_rows: bool = False
    """Whether the state is computed from rows of the whole dataset. Rows added later do not contribute to it."""


RowScore = Callable[[pa.Table], pa.Table]
"""Rows with the columns that the kind needs -> the kind's columns for the same rows. Values depend on the row alone,
not on other rows in the table. A value is null if the row lacks something that the score needs."""


ROUNDING = 1e-5
"""Cosines of a row that differ by less than this can be in a different order on another machine."""


@runtime_checkable
class HasTies(Protocol):
    """A RowScore with columns, such as the best class, that rounding can change when two values almost tie."""

    def certain(self, rows: pa.Table) -> dict[str, Mask]:
        """Column -> whether each row's value is certain [rows]. Columns that are not in the dict are always certain."""


class ScoreKind(Protocol):
    """A score of one kind, with its name and settings. Consists of plain values, so it can be sent to workers."""

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """The settings with absolute paths and all defaults filled in from the dataset, so that they mean the same in
        every process. Raises ScoreError if the dataset lacks something that the score needs."""

    @property
    def needs(self) -> Needs:
        """The inputs and resources of the score. Like all methods below, used only with resolved settings."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the score: NAME, or names that start with NAME_."""

    @property
    def files(self) -> list[str]:
        """The user's files from which the state is made. They must not change between runs."""

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Prepare the state: everything that the values depend on besides the row. Raises ScoreError."""

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Create the function that scores rows in this process."""


class NoFiles:
    """A kind whose state is made from the dataset alone."""

    @property
    def files(self) -> list[str]:
        """No files."""
        return []


class OneNumber:
    """A kind with one column: NAME, float32."""

    name: str

    @property
    def schema(self) -> pa.Schema:
        """The column with the score."""
        return pa.schema([pa.field(self.name, pa.float32())])


def float_column(values: Floats, is_valid: Mask) -> pa.Array:
    """Convert float32 [rows] to an Arrow array, null where `is_valid` [rows] is False or the value is not finite."""
    return pa.array(values, pa.float32(), mask=~(is_valid & np.isfinite(values)))
