"""Finds the entries of each row: concepts in its caption, the host of its URL, or the value of a column."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import widened
from pairmill.pipeline.common.hosts import hosts_of
from pairmill.pipeline.select.balance.word_list import Integers, WordFile
from pairmill.pipeline.select.expression_errors import ExpressionError, no_column, require_columns
from pairmill.pipeline.select.keys import U64, can_be_key, is_comparable

_ENTRY_BITS = 24
"""Low bits of a concept's key, which store its number in the list. The bits above store a hash of the language."""
_NAME_CHARS = 200


class RowEntries(NamedTuple):
    """Matches, each consisting of a row index and the key of an entry of that row."""

    rows: Integers
    """Row indices, ascending; shape (matches,)."""
    keys: U64
    """Keys of the entries; shape (matches,). No row has an entry twice."""


class Entries(Protocol):
    """The kind of entry that rows are balanced by. Picklable."""

    @property
    def is_costly(self) -> bool:
        """Whether the entries are kept in memory, because finding them again would take long."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns that `of` reads."""

    def check(self, schema: pa.Schema) -> None:
        """Check columns and types. Raises ExpressionError."""

    def of(self, table: pa.Table) -> RowEntries:
        """The entries of each row of a table."""

    def names(self, table: pa.Table, keys: Collection[int]) -> dict[int, str]:
        """The names of the entries with these keys, but only of those that occur in the table."""


@dataclass(frozen=True)
class ColumnEntries:
    """Uses the values of a column as entries, except null and NaN."""

    column: str
    is_costly: bool = False

    @property
    def columns(self) -> frozenset[str]:
        """The column."""
        return frozenset({self.column})

    def check(self, schema: pa.Schema) -> None:
        """Check that the column's values can be compared. Raises ExpressionError."""
        if self.column not in schema.names:
            raise ExpressionError(f"{no_column(schema, self.column)}; `by` also accepts concept, host and host(url)")
        if not can_be_key(kind := schema.field(self.column).type):
            raise ExpressionError(f"column {self.column!r} is {kind}, and balance cannot compare such values")

    def of(self, table: pa.Table) -> RowEntries:
        """The entry of each row: a hash of the value's text."""
        rows, codes, texts = self._coded(table)
        return RowEntries(rows, _hashes(texts)[codes])

    def names(self, table: pa.Table, keys: Collection[int]) -> dict[int, str]:
        """The values as text, cut to 200 characters."""
        _, _, texts = self._coded(table)
        found = zip(_hashes(texts).tolist(), texts.to_pylist(), strict=True)
        return {key: text[:_NAME_CHARS] for key, text in found if key in keys}

    def _coded(self, table: pa.Table) -> tuple[Integers, Integers, pa.Array]:
        """(rows with a value, index of each row's value, text of each value)."""
        values = self._values(table)
        rows = np.flatnonzero(is_comparable(values).combine_chunks().to_numpy(zero_copy_only=False))
        if pa.types.is_floating(values.type):
            values = pc.add(values, pa.scalar(0.0, values.type))  # -0.0 becomes 0.0
        encoded = values.combine_chunks()
        if not pa.types.is_dictionary(encoded.type):
            encoded = encoded.dictionary_encode()
        codes = np.asarray(encoded.indices.take(pa.array(rows)).to_numpy(zero_copy_only=False), np.int64)
        return rows, codes, encoded.dictionary.cast(pa.string())

    def _values(self, table: pa.Table) -> pa.ChunkedArray:
        return widened(table[self.column])


@dataclass(frozen=True)
class HostEntries(ColumnEntries):
    """Uses the host of `url` as the entry, however it is spelled. A URL without a host has no entry."""

    column: str = "url"

    def _values(self, table: pa.Table) -> pa.ChunkedArray:
        return pa.chunked_array([hosts_of(table[self.column])])


@dataclass(frozen=True)
class ConceptEntries:
    """Finds the entries of a word list in captions. With `language`, an entry counts separately in each language."""

    file: WordFile
    caption: str
    language: str | None
    is_costly: bool = True

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the caption and, if there is one, of the language."""
        return frozenset({self.caption} | ({self.language} if self.language else set()))

    def check(self, schema: pa.Schema) -> None:
        """Check that both columns are text. Raises ExpressionError."""
        require_columns(schema, self.columns)
        for name in sorted(self.columns):
            kind = schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise ExpressionError(f"column {name!r} is {kind}, not text")

    def of(self, table: pa.Table) -> RowEntries:
        """The entries in each caption: the number of the entry, combined with a hash of the language."""
        rows, numbers = self.file.load().find(_plain(table[self.caption]))
        keys = numbers.astype(np.uint64)
        if self.language:
            keys |= self._languages(table)[0][rows]
        return RowEntries(rows, keys)

    def names(self, table: pa.Table, keys: Collection[int]) -> dict[int, str]:
        """The entries as written in the file. The table is not used."""
        listed = self.file.load().entries
        return {key: listed[key & ((1 << _ENTRY_BITS) - 1)].as_py()[:_NAME_CHARS] for key in keys}

    def languages(self, table: pa.Table) -> dict[int, str]:
        """Map the hashes of a table's languages, as in `language_of`, to their names. Empty without a language column.

        A null language is called `unknown`.
        """
        return self._languages(table)[1] if self.language else {}

    def _languages(self, table: pa.Table) -> tuple[U64, dict[int, str]]:
        assert self.language is not None
        encoded = pc.fill_null(_plain(table[self.language]), "unknown").combine_chunks().dictionary_encode()
        shift = np.uint64(_ENTRY_BITS)
        hashes = _hashes(encoded.dictionary) >> shift << shift
        named = dict(zip(language_of(hashes).tolist(), encoded.dictionary.to_pylist(), strict=True))
        return hashes[encoded.indices.to_numpy(zero_copy_only=False)], named


def language_of(keys: U64) -> U64:
    """The hash of the language in each key of ConceptEntries."""
    return keys >> np.uint64(_ENTRY_BITS)


def language_hash(language: str) -> int:
    """The hash of a language, as in `language_of`."""
    return int(language_of(_hashes(pa.array([language])))[0])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _hashes(texts: pa.Array) -> U64:
    """BLAKE2b-64 of each string; shape (texts,)."""
    hashed = (hashlib.blake2b((text or "").encode(), digest_size=8).digest() for text in texts.to_pylist())
    return np.frombuffer(b"".join(hashed), "<u8").astype(np.uint64)
