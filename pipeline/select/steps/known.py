"""The step `known`: drops the rows that another dataset or a list contains."""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.datasets import KnownDataset
from pairmill.pipeline.known.embeddings import SharedVectors, chosen_model, column_of, read_vectors, shared_vectors
from pairmill.pipeline.known.keys import columns_of
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.shared import SharedKeys, shared_keys
from pairmill.pipeline.known.sources import open_source
from pairmill.pipeline.select.expression_errors import require_columns
from pairmill.pipeline.select.filters import RowIndices, RowMask
from pairmill.pipeline.select.not_compared import NotCompared
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.unreadable_hashes import require_hashes
from pairmill.schemas.known import DEFAULT_KINDS, DEFAULT_THRESHOLD, Known, KnownReport, KnownRows, ValueKind
from pairmill.schemas.subset import StepReport


@dataclass(frozen=True)
class NotKnown:
    """Keeps the rows whose value is not in a file of keys, and those without a value."""

    step: int
    keys: SharedKeys

    @property
    def columns(self) -> frozenset[str]:
        """The column with the values."""
        return columns_of(self.keys.which.kind)

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """Look up the values."""
        return ~self.keys.contains(table)


@dataclass(frozen=True)
class NotNearKnown:
    """Keeps the rows whose embedding is near no known embedding, and those without an embedding."""

    step: int
    column: str
    vectors: SharedVectors
    threshold: float

    @property
    def columns(self) -> frozenset[str]:
        """The column of embeddings."""
        return frozenset({self.column})

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """Compare each row with all known embeddings."""
        vectors, usable = read_vectors(table[self.column])
        kept = np.ones(len(vectors), np.bool_)
        kept[usable] = ~self.vectors.near(vectors[usable], self.threshold)
        return kept


@dataclass
class KnownStep:
    """Drops the rows that are known by a value or an embedding."""

    known: Known
    model: str = field(default="", init=False)
    """Alias of the model whose embeddings are compared."""
    found: KnownReport | None = field(default=None, init=False)

    @classmethod
    def open(cls, files: Files, known: Known) -> "KnownStep":
        """Create the step. Checks that the other dataset or list exists. Raises StepError."""
        rows = known.values or KnownRows(path=known.path, rows=known.rows, subset=known.subset)
        try:
            source = open_source(rows, files, None)
        except KnownError as error:
            raise StepError(str(error)) from None
        if known.embeddings and not isinstance(source, KnownDataset):
            raise StepError(f"{known.path} is not a dataset with finished shards, so it has no embeddings")
        return cls(known)

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the values and, once the model is known, of the embeddings."""
        values, model = self.known.values, self.model or self.known.model
        names = () if values is None else values.by or DEFAULT_KINDS
        return frozenset({*names, *(column_of(kind, model) for kind in self.known.embeddings if model)})

    def check(self, schema: pa.Schema) -> None:
        """Check that the dataset has the columns. Raises ExpressionError or StepError."""
        if self.known.embeddings:
            try:
                self.model = chosen_model(schema, self.known.model)
            except KnownError as error:
                raise StepError(str(error)) from None
        require_columns(schema, self.columns)
        require_hashes(schema, self.columns)

    def run(self, selector: Selector, number: int) -> None:
        """Write the known values to files, and drop the rows that have one of them. Scans immediately, while the
        files still exist."""
        store: Store = selector.chunks[0].store
        with ExitStack() as files:
            values, unused, digests = dict[str, int](), dict[str, int](), list[str]()
            kinds = set[ValueKind]()
            if self.known.values is not None:
                source, all_keys = files.enter_context(shared_keys(store, self.known.values))
                unused |= source.unused
                for keys in all_keys:
                    selector.filters.append(NotKnown(number, keys))
                    values[keys.which.label] = keys.values
                    kinds |= {keys.which.kind} if keys.values else set()
                    digests.append(f"{keys.which} {keys.file.blake2b}")
            for kind in self.known.embeddings:
                vectors = files.enter_context(shared_vectors(store, selector.chunks[0], self.known, kind, self.model))
                threshold = DEFAULT_THRESHOLD if self.known.threshold is None else self.known.threshold
                selector.filters.append(NotNearKnown(number, column_of(kind, self.model), vectors, threshold))
                values[kind] = vectors.num_vectors
                digests.append(f"{kind} {vectors.file.blake2b}")
            embeddings = {str(kind): column_of(kind, self.model) for kind in self.known.embeddings}
            not_compared = NotCompared(sorted(kinds), embeddings).count(selector)
        blake2b = hashlib.blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()
        self.found = KnownReport(values=values, unused=unused, not_compared=not_compared, blake2b=blake2b)

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """Add to the report what the rows were compared with, and whether it has changed since the last selection."""
        found = cast(KnownReport, self.found)
        before = earlier.known.blake2b if earlier and earlier.known else None
        found = found.model_copy(update={"earlier_blake2b": before if before != found.blake2b else None})
        return report.model_copy(update={"known": found})
