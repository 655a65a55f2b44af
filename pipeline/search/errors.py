"""Defines the error of everything that searches."""

from pairmill.pipeline.reader.embeddings import EmbeddingsError


class SearchError(EmbeddingsError):
    """The dataset cannot be searched as asked; the message says what to do."""
