"""Defines the error for models and weights that cannot be used."""

from pairmill.schemas.errors import PairmillError


class ModelError(PairmillError, ValueError):
    """A model or its weights are not available. The message says which and what to do."""
