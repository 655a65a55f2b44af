"""Defines the error of models and weights that cannot be used."""

from pairmill.schemas.errors import PairmillError


class ModelError(PairmillError, ValueError):
    """A model or its weights are not available; the message says which and what to do."""
