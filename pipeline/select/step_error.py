"""Defines the error for a step that cannot run, for example because a file that it names cannot be used."""

from pairmill.schemas.errors import FailureKind, PairmillError


class StepError(PairmillError, ValueError):
    """A step of a select job cannot run; the message says why."""

    kind = FailureKind.JOB
