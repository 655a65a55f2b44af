"""Reads the embeddings by which rows are compared, and converts them to the forms that the passes need."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pairmill.pipeline.known.embeddings import Floats, Halves, read_vectors, unit
from pairmill.schemas.pairs import score_column_names

Compared = Literal["embedding", "text_embedding", "pair"]
"""What is compared: pictures, captions, or both at once."""

GRID = np.float32(2048)
"""Steps per unit of the grid. Products of two numbers on the grid are multiples of 2**-22. In the dot product of two
unit vectors, all partial sums stay below 4, so float32 represents them exactly: dot products on the grid are the same
on every machine, with any number of threads and in any order."""


@dataclass(frozen=True)
class Vectors:
    """Names the embeddings to compare."""

    by: Compared
    model: str
    """Alias of the model."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns: one, or two (picture and caption) for pairs."""
        names = score_column_names(self.model)
        of = {"embedding": (names.image_embedding,), "text_embedding": (names.text_embedding,)}
        return of.get(self.by, (names.image_embedding, names.text_embedding))

    @property
    def columns(self) -> frozenset[str]:
        """The names of the columns, as a set."""
        return frozenset(self.names)

    def read(self, table: pa.Table) -> tuple[Halves, Any]:
        """(vectors, float16 [columns, rows, dim]; whether each row can be compared, [rows]).

        A row cannot be compared if one of its embeddings is null, zero, NaN or infinite.
        """
        read = [read_vectors(table[name]) for name in self.names]
        return np.stack([vectors for vectors, _ in read]), np.logical_and.reduce([usable for _, usable in read], axis=0)


def on_grid(vectors: Halves) -> Floats:
    """Join the columns of each row into a vector of length about 1, rounded to the GRID.

    float16 [columns, rows, dim] -> float32 [rows, columns * dim].

    The cosine of two results is the mean of the cosines of the columns.
    """
    columns, rows, dim = vectors.shape
    flat: Floats = unit(vectors).transpose(1, 0, 2).reshape(rows, columns * dim)
    flat *= GRID / np.float32(np.sqrt(columns))
    found: Floats = np.rint(flat, out=flat)
    found /= GRID
    return found
