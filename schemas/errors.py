"""`PairmillError` is the base of every error that a user can meet; each class says where the fault lies.

    PairmillError
    ├── JobError, ModelError, CustomRuleError, ...    JOB      the job cannot run as it is written
    ├── SourceError, PlanError, ReadError             INPUT    an input file is damaged, missing or changed
    ├── StorageError                                  STORAGE  the output is full or denies access
    ├── LocalFault                                    MACHINE  this machine is out of memory, files or processes
    └── AccountingError, ManifestError, ...           SHARD    this shard alone

A bad row is not an error: it gets a Status.
"""

from enum import StrEnum
from typing import ClassVar


class FailureKind(StrEnum):
    """Where the fault lies, and so how the failure is handled."""

    ROW = "row"
    """The row gets a Status; other rows are unaffected."""
    SHARD = "shard"
    """Only this shard fails; a later run rebuilds it."""
    INPUT = "input"
    """A file is damaged: all of its shards fail, and the run continues with the others."""
    JOB = "job"
    """A rule or a model that will fail on every shard: the run stops after the first few."""
    MACHINE = "machine"
    """No row is to blame: the shard is rebuilt elsewhere or later."""
    STORAGE = "storage"
    """Nothing more can be written: the run stops at once."""


class PairmillError(Exception):
    """Base of all errors that tell a user what to do. The message is a few plain lines at most."""

    kind: ClassVar[FailureKind] = FailureKind.JOB


class JobError(PairmillError, ValueError):
    """The job cannot run as it is written; the message names file, line and field, and says what to do."""
