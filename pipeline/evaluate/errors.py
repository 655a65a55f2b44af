"""Defines the exception that the package `evaluate` raises."""

from pairmill.schemas.errors import FailureKind, PairmillError


class EvaluateError(PairmillError, ValueError):
    """The labels, scores or embeddings cannot be used for this evaluation; the message says what to do."""

    kind = FailureKind.JOB
