"""Defines the error for models and weights that cannot be used."""

from pairmill.schemas.errors import PairmillError


class ModelError(PairmillError, ValueError):
    """A model or its weights cannot be used. The message says why and what to do."""
