"""Defines the error for a list or dataset of known rows that cannot be used."""

from pairmill.schemas.errors import FailureKind, PairmillError


class KnownError(PairmillError, ValueError):
    """A list or dataset of known rows cannot be used; the message names it and says what to do."""

    kind = FailureKind.JOB
