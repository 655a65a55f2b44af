"""Defines the error that every search raises."""

from pairmill.pipeline.reader.embeddings import EmbeddingsError


class SearchError(EmbeddingsError):
    """The dataset cannot be searched as requested. The message says what to do."""
