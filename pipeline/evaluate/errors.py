"""Defines the error of this module."""

from pairmill.schemas.errors import FailureKind, PairmillError


class EvaluateError(PairmillError, ValueError):
    """Labels, scores or embeddings do not allow what was asked; the message says what to do."""

    kind = FailureKind.JOB
