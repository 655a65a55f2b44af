"""Defines the error of a step whose own input cannot be used, such as a file."""

from pairmill.schemas.errors import FailureKind, PairmillError


class StepError(PairmillError, ValueError):
    """A step of a select job cannot run; the message says why."""

    kind = FailureKind.JOB
