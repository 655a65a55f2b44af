"""Defines `PairmillError`, the base class of every error that a user may see. Each class says where the fault lies.

    PairmillError
    ├── JobError, ModelError, CustomRuleError, ...    JOB      the job cannot run as written
    ├── SourceError, PlanError, ReadError             INPUT    an input file is damaged, missing or changed
    ├── StorageError                                  STORAGE  the output is full or denies access
    ├── LocalFault                                    MACHINE  this machine is out of memory, file descriptors, ...
    └── AccountingError, ManifestError, ...           SHARD    this shard alone

A bad row is not an error: it gets a Status.
"""

from enum import StrEnum
from typing import ClassVar


class FailureKind(StrEnum):
    """Where the fault lies, which decides how the failure is handled."""

    ROW = "row"
    """The row gets a Status; other rows are unaffected."""
    SHARD = "shard"
    """Only this shard fails; a later run rebuilds it."""
    INPUT = "input"
    """An input file is damaged: all of its shards fail, and the run continues with the other files."""
    JOB = "job"
    """A rule or a model will fail on every shard: the run stops after the first few failures."""
    MACHINE = "machine"
    """The machine is at fault, not the data: the shard is rebuilt elsewhere or later."""
    STORAGE = "storage"
    """Nothing more can be written: the run stops immediately."""


class PairmillError(Exception):
    """Base class of all errors that tell users what to do. The message is at most a few plain lines."""

    kind: ClassVar[FailureKind] = FailureKind.JOB


class JobError(PairmillError, ValueError):
    """The job cannot run as written. The message names the file, line and field, and says what to do."""
