"""Reads the evaluation set: its rows, the hashes of its pictures in all variants, and their embeddings."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.withdrawn import UnfinishedPurgeError
from pairmill.pipeline.known.embeddings import column_of, read_vectors, space_of
from pairmill.pipeline.known.keys import row_keys
from pairmill.pipeline.leak.variants import HASH_WORDS, VARIANTS, is_plain, variant_hashes
from pairmill.pipeline.leak.ways import way_number
from pairmill.pipeline.reader.pictures import Pictures
from pairmill.pipeline.reader.snapshot import DatasetError, Snapshot
from pairmill.pipeline.select.step_error import StepError
from pairmill.schemas.leak import Leak, LeakKind
from pairmill.schemas.pairs import KEPT_STATUS

Indices = npt.NDArray[np.int64]
Entries = npt.NDArray[np.void]
"""Values of one kind that rows are compared with. Fields: `value` (uint64 [words] or float16 [dim]), `item` (number of
the evaluation picture) and `way` (index in WAYS)."""


def hash_entry(words: int) -> np.dtype[np.void]:
    """The dtype of an entry with a hash of this many words."""
    return np.dtype([("value", "<u8", (words,)), ("item", "<i8"), ("way", "i1")])


def vector_entry(dim: int) -> np.dtype[np.void]:
    """The dtype of an entry with an embedding."""
    return np.dtype([("value", "<f2", (dim,)), ("item", "<i8"), ("way", "i1")])


class NewPictures(NamedTuple):
    """The pictures that a shard is the first to contain."""

    rows: Indices
    """Indices of their first rows, among the rows of the shard that count."""
    items: Indices
    """Their numbers."""


@dataclass(frozen=True)
class EvaluationSet:
    """The dataset of the evaluation pictures. Picklable."""

    leak: Leak
    snapshot: Snapshot

    @classmethod
    def open(cls, leak: Leak, files: Files) -> "EvaluationSet":
        """Open the dataset in its current state. Raises StepError if it does not exist, is not finished or is empty."""
        try:
            snapshot = Snapshot.of(Store(leak.against, files.s3))
        except UnfinishedPurgeError:
            raise
        except (DatasetError, ValueError, OSError) as error:
            raise StepError(f"{error}; make a dataset of the evaluation pictures with `pairmill embed`") from None
        if missing := snapshot.unfinished_shards:
            raise StepError(
                f"{leak.against} is not finished ({counted(missing, 'shard')} missing): rerun the command that makes it"
            )
        return cls(leak, snapshot)

    def read(self, position: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a shard, for the rows that count."""
        shard = self.snapshot.chunk.shards[position]
        table = self.snapshot.read(shard, list(dict.fromkeys([*columns, "status"])))
        if self.leak.rows == "kept":
            table = table.filter(pc.equal(table["status"], KEPT_STATUS))
        return table.select(list(columns))

    def read_rejects(self, position: int, columns: Sequence[str]) -> pa.Table:
        """Columns of the rejects of a shard, if they count."""
        files = self.snapshot.manifest(self.snapshot.generations[position]).files
        if self.leak.rows == "kept" or "rejects" not in files:
            return self.snapshot.schema_of(columns).empty_table()
        with self.snapshot.errors():
            table = read_table(self.snapshot.store, files["rejects"].path, set(columns))
        return table.select(list(columns)).cast(self.snapshot.schema_of(columns))

    def checked_vectors(self, own: Chunk, alias: str) -> str:
        """Name of the column with embeddings made with the same weights as the model `alias` here. Raises StepError."""
        other = self.leak.other_model or alias
        name = column_of("embedding", other)
        if name not in self.snapshot.schema.names:
            raise StepError(
                f"{self.leak.against} has no embeddings by {other!r}: set other_model to that dataset's alias of the "
                "same model, or add the model there with embed --add-model"
            )
        if (mine := space_of(own, alias)) is None or mine != space_of(self.snapshot.chunk, other):
            raise StepError(
                f"{self.leak.against}: its embeddings by {other!r} were not made with the weights and activation of "
                f"{alias!r}; embed its pictures with that model first"
            )
        return name


@dataclass(frozen=True)
class ShardHashes:
    """The hashes of the pictures of a shard."""

    entries: dict[LeakKind, Entries]
    plain: int
    """Number of pictures too plain to compare by hash."""


def shard_hashes(evaluation: EvaluationSet, position: int, new: NewPictures) -> ShardHashes:
    """Hash the pictures that a shard is the first to contain, in all variants. Raises DatasetError for a picture that
    is missing or has changed, because a set that was only partly compared would seem clean."""
    hashes = evaluation.leak.hashes
    found: dict[LeakKind, list[Entries]] = {kind: [np.zeros(0, hash_entry(HASH_WORDS[kind]))] for kind in hashes}
    plain = 0
    with closing(Pictures(evaluation.snapshot)) as pictures:
        rows = take_rows(evaluation.read(position, pictures.needed), new.rows)
        for item, row_id, picture in zip(
            new.items.tolist(), rows["row_id"].to_pylist(), pictures.of(position, rows), strict=True
        ):
            if picture is None:
                raise DatasetError(
                    f"{evaluation.leak.against} has no picture for row {row_id}: leave the hashes out of "
                    "`by`, or make the evaluation set again and store its pictures"
                )
            luma = np.asarray(picture.convert("L"), np.uint8)
            if is_plain(luma):
                plain += 1
                continue
            for kind in hashes:
                found[kind].append(_entries(luma, kind, evaluation.leak, item))
    return ShardHashes({kind: np.concatenate(parts) for kind, parts in found.items()}, plain)


def _entries(luma: npt.NDArray[np.uint8], kind: LeakKind, leak: Leak, item: int) -> Entries:
    words, variants = variant_hashes(luma, kind, leak.all_variants)
    ways = np.array([way_number(kind, at) for at in range(len(VARIANTS))], np.int8)
    entries = np.zeros(len(words), hash_entry(HASH_WORDS[kind]))
    entries["value"], entries["item"], entries["way"] = words, item, ways[variants]
    return entries


def sha256_entries(items: pa.Table) -> Entries:
    """Entries with the first 64 bits of each picture's SHA-256, for pictures that have one."""
    keys, has_value = row_keys("sha256", items)
    entries = np.zeros(int(has_value.sum()), hash_entry(1))
    entries["value"][:, 0], entries["item"] = keys[has_value], np.flatnonzero(has_value)
    return entries


def vector_entries(evaluation: EvaluationSet, new: Sequence[NewPictures], column: str) -> Entries:
    """Entries with the usable embeddings in a column. `new`: the pictures of each shard."""
    parts = []
    for position, pictures in enumerate(new):
        vectors, usable = read_vectors(take_rows(evaluation.read(position, [column]), pictures.rows)[column])
        entries = np.zeros(int(usable.sum()), vector_entry(vectors.shape[1]))
        entries["value"], entries["item"] = vectors[usable], pictures.items[usable]
        entries["way"] = way_number("embedding")
        parts.append(entries)
    return np.concatenate(parts)
