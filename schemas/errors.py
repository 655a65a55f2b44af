"""Every error that a user can meet stands under `PairmillError`, and each says whose fault it is.

    PairmillError
    ├── JobError, ModelError, CustomRuleError, ...    JOB      the job cannot run as it is written
    ├── SourceError, PlanError, ReadError             INPUT    a file of the input is damaged, gone or changed
    ├── StorageError                                  STORAGE  the output is full, or refuses us
    ├── LocalFault                                    MACHINE  this machine is out of memory, files or processes
    └── AccountingError, ManifestError, ...           SHARD    this shard alone

What is wrong with a row is no error: the row gets a Status.
"""

from enum import StrEnum
from typing import ClassVar


class FailureKind(StrEnum):
    """Whose fault a failure is, and so what is done about it."""

    ROW = "row"
    """The row gets a Status; its neighbors are not touched."""
    SHARD = "shard"
    """The shard fails alone, and a later run makes it again."""
    INPUT = "input"
    """A file is damaged: its shards fail, however many there are, and all others have their turn."""
    JOB = "job"
    """A rule or a model will fail every shard alike: the run stops after the first few."""
    MACHINE = "machine"
    """No row is to blame: the shard is made again elsewhere or later."""
    STORAGE = "storage"
    """Nothing can be written any more: the run stops at once."""


class PairmillError(Exception):
    """Base of all errors that tell a user what to do. The message is one or a few plain lines."""

    kind: ClassVar[FailureKind] = FailureKind.JOB


class JobError(PairmillError, ValueError):
    """The job cannot run as it is written; the message names file, line and field, and says what to do."""
