"""Searches one file for purged rows: all values in Parquet, members of tars, vectors, and every byte of other files.

Compressed files are unpacked. At most one window of text, one batch of Parquet or one part of an index is in memory.
"""

import hashlib
import sys
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.foreign_parquet import PARQUET_MAGICS, open_parquet
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.image.sniff import image_format
from pairmill.pipeline.known.keys import PDQ
from pairmill.pipeline.purge.keys import digest
from pairmill.pipeline.purge.needles import Needles
from pairmill.pipeline.purge.notations import csv_fields, strings_in, strings_in_cells
from pairmill.pipeline.purge.pdq import comparable
from pairmill.pipeline.purge.tensors import read_tensors
from pairmill.pipeline.purge.unpack import UnsearchableError, is_packed, unpacked
from pairmill.pipeline.purge.windows import (
    BLOCK_BYTES,
    HEAD_BYTES,
    Part,
    Reads,
    Window,
    blocks,
    in_utf8,
    wide_encoding,
    windows,
)
from pairmill.pipeline.purge.witness import PICTURE, caption_digest, vector_digests
from pairmill.pipeline.search.local_copy import local_copy
from pairmill.pipeline.search.vector_index import VectorIndex
from pairmill.pipeline.source.corpus.tar_members import members
from pairmill.schemas.manifest import DataFile

_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError, tarfile.TarError)  # Arrow raises the first three
_BATCH_ROWS = 4_096
_MIN_OVERLAP = 1 << 16
_MAX_ESCAPE_CHARS = 12
"""Maximum number of characters for one: `\\ud83d\\ude00`."""
_TEXTS = (".txt", ".json")
_HASH_BYTES = (16, 32)
_MAX_DEPTH = 3
"""Maximum depth to which files inside files are unpacked."""
_USTAR = slice(257, 262)


@dataclass
class FileReport:
    """What was found in a file."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    """What was searched: bytes, values, captions, vectors, pictures, members."""
    found: set[str] = field(default_factory=set)
    """Descriptions of the listed values and withdrawn rows that were found."""
    digests: set[bytes] = field(default_factory=set)
    """Digests of captions, pictures and vectors of withdrawn rows that were found; other rows can have them too."""
    parts: set[bytes] = field(default_factory=set)
    """Digests of captions of withdrawn rows that were found as parts of longer texts."""
    unsearched: set[str] = field(default_factory=set)
    """Why the file, or parts of it, could not be searched."""


def search_file(store: Store, needles: Needles, name: str) -> FileReport:
    """Search one file of the output folder."""
    report = FileReport(name)
    search = _FileSearch(needles, report)
    search.text(name, " (its name)")
    with store.open(name) as file:
        search.file(file, name)
    if name.endswith(".faiss"):
        search.index(store, name)
    return report


class _FileSearch:
    def __init__(self, needles: Needles, report: FileReport) -> None:
        self._needles, self._report = needles, report

    def file(self, file: IO[bytes], name: str, where: str = "", depth: int = 0) -> None:
        """Search a file, or the contents of a compressed file. `where`: the place of a file inside another file."""
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if is_packed(head):
            self._packed(file, head, name, where, depth)
            return
        try:
            if head.startswith(PARQUET_MAGICS):
                self._parquet(file, where)
                return
            if name.endswith(".tar") or head[_USTAR] == b"ustar":
                self._tar(file, where)
                return
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno is not None:  # it could not be read
                raise
            self._report.unsearched.add(f"is damaged ({error}){where}")
        file.seek(0)
        if name.endswith(".safetensors"):
            self._tensors(file, where)
        self._bytes(Part(file, 0, sys.maxsize), where, name)

    def _packed(self, file: IO[bytes], head: bytes, name: str, where: str, depth: int) -> None:
        if depth == _MAX_DEPTH:
            self._report.unsearched.add(f"is packed too many times{where}")
            return
        try:
            for member, content in unpacked(file, head):
                self.text(member, where)
                inner = f" (member {member}){where}" if member else where
                self.file(content, member or name.rpartition(".")[0], inner, depth + 1)
        except UnsearchableError as error:
            self._report.unsearched.add(f"{error}{where}")

    def text(self, text: str, where: str = "") -> None:
        """Look for listed values."""
        self._report.counts["bytes"] += len(text)
        self._report.found.update(f"{value}{where}" for value in self._needles.in_text(text))

    def _whole(self, texts: Collection[str], where: str) -> None:
        """Look for listed values and captions of withdrawn rows in whole cells or files."""
        self._report.digests |= self._captions(texts, where)

    def _parts(self, sets: Iterable[Collection[str]], where: str) -> None:
        """The same in parts of texts, one set after the other because they can be large."""
        for texts in sets:
            self._report.parts |= self._captions(texts, where)

    def _captions(self, texts: Collection[str], where: str) -> set[bytes]:
        self._report.counts["captions"] += len(texts)
        self._report.found.update(f"{value}{where}" for value in self._needles.in_cells(texts))
        return {each for text in texts if (each := caption_digest(text)) in self._needles.captions}

    def vectors(self, digests: Sequence[bytes | None]) -> None:
        """Look for embeddings of withdrawn rows."""
        self._report.counts["vectors"] += len(digests)
        self._report.digests |= {each for each in digests if each in self._needles.vectors}

    def picture(self, content: Iterable[bytes], where: str) -> None:
        """Look for a stored picture of a withdrawn row, or a picture whose SHA-256 is listed."""
        self._report.counts["pictures"] += 1
        plain, ours = hashlib.sha256(), hashlib.sha256(f"{PICTURE}\0".encode())  # as in `keys.digest`
        for block in content:
            plain.update(block)
            ours.update(block)
        if (found := ours.digest()) in self._needles.pictures:
            self._report.digests.add(found)
        if plain.hexdigest() in self._needles.values.get("sha256", ()):
            self._report.found.add(f"a picture with sha256 {plain.hexdigest()}{where}")

    def _parquet(self, file: IO[bytes], where: str) -> None:
        """Search the metadata and every value of every column in a Parquet file, and look for withdrawn rows."""
        with open_parquet(file) as parquet:
            metadata = parquet.metadata.metadata or {}
            self._texts([value.decode("utf-8", "replace") for value in (*metadata, *metadata.values())], where)
            for batch in parquet.iter_batches(_BATCH_ROWS):
                table = comparable(pa.Table.from_batches([batch]))
                self._rows(table)
                for field_, column in zip(table.schema, table.columns, strict=True):
                    self._column(field_.name, column.combine_chunks(), where)

    def _rows(self, table: pa.Table) -> None:
        """Look for rows with a withdrawn position or PDQ hash."""
        names = set(table.column_names)
        if "row_id" in names and not self._report.name.startswith("withdrawn/"):
            for row_id in set(table["row_id"].to_pylist()) & self._needles.row_ids:
                self._report.found.add(f"the withdrawn row {row_id}")
        if PDQ in names:
            self._report.found.update(self._needles.near_pdq(table))

    def _column(self, name: str, column: pa.Array, where: str) -> None:
        here = f" (column {name}){where}"
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        kind = column.type
        self._report.counts["values"] += len(column)
        if pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type):
            self.vectors(vector_digests(column))
        elif pa.types.is_struct(kind):
            for index in range(kind.num_fields):
                self._column(f"{name}.{kind.field(index).name}", column.field(index), where)
        elif pa.types.is_map(kind):
            self._column(name, column.keys, where)
            self._column(name, column.items, where)
        elif pa.types.is_nested(kind):
            self._column(name, column.flatten(), where)
        elif pa.types.is_dictionary(kind):
            self._column(name, column.dictionary, where)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            self._texts(column.drop_null().to_pylist(), here)
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            self._binaries(column.drop_null().to_pylist(), here)

    def _texts(self, texts: list[str], where: str) -> None:
        for batch in _batches(texts):
            self.text("\n".join(batch), where)
            self._whole(batch, where)
            self._parts(strings_in_cells(batch), where)

    def _binaries(self, values: list[bytes], where: str) -> None:
        """Search binary values, which can be text, pictures, or the bytes of a uid or hash."""
        if not self._report.name.startswith("withdrawn/"):  # the ledger contains the listed PDQ hashes
            self.text("\n".join(value.hex() for value in values if len(value) in _HASH_BYTES), where)
        for value in values:
            for window in self._windows(Part(BytesIO(value), 0, len(value)), where):
                self._parts(strings_in_cells([window.text]), where)
            self.picture([value], where)

    def _tar(self, file: IO[bytes], where: str) -> None:
        """Search the names and contents of a tar's members. Pictures are only hashed. Raises tarfile.TarError if a part
        of the tar is damaged, after searching the others."""
        damage = None
        for found in members(file, file.seek(0, 2)):
            if found.is_gap:
                damage = damage or found.problem
                continue
            name = found.name
            self._report.counts["members"] += 1
            inner = f" (member {name}){where}"
            self.text(name, where)
            member = Part(file, found.offset, found.size)
            head = member.head()
            if is_packed(head) or head.startswith(PARQUET_MAGICS):
                self._report.unsearched.add(f"is {'packed' if is_packed(head) else 'Parquet'}{inner}")
            elif image_format(head) is None:
                self._bytes(member, inner, name)
            if not name.endswith(_TEXTS):
                self.picture(blocks(member.again()), inner)
        if damage is not None:
            raise tarfile.ReadError(damage)

    def _bytes(self, part: Part, where: str, name: str = "") -> None:
        """Search any other file, or a range of a file; in text, JSON, HTML or CSV, also everything that could be a
        caption or URL."""
        for window in self._windows(part, where, name):
            self._parts(strings_in(window), where)
            if name.lower().endswith((".csv", ".tsv")):
                self._parts(csv_fields(window), where)

    def _windows(self, part: Part, where: str, name: str = "") -> Iterator[Window]:
        """Search a range of a file for words, and as a whole text if it is small. Returns the windows that are text."""
        head = part.head()
        contents: list[tuple[Reads, bool]] = [(part, b"\0" not in head or name.endswith(_TEXTS))]
        if encoding := wide_encoding(head):
            contents.append((in_utf8(part.again(), encoding), True))
        for content, can_be_text in contents:
            for window in windows(content, max(_MIN_OVERLAP, _MAX_ESCAPE_CHARS * self._needles.longest), can_be_text):
                self._report.counts["bytes"] += window.num_bytes
                self._report.found.update(f"{value}{where}" for value in self._needles.in_text(window.text))
                if window.is_text:
                    if window.is_first and window.is_last:
                        self._whole([window.text], where)
                    yield window

    def _tensors(self, file: IO[bytes], where: str) -> None:
        """Search the vectors and uids in a safetensors file."""
        for name, rows in read_tensors(file):
            if rows.dtype == np.float16:
                self.vectors([digest("vector", row.tobytes()) for row in rows])
            elif rows.dtype == np.uint64 and rows.shape[1] == 2:
                for high, low in rows.tolist():
                    if digest("uid", f"{high:016x}{low:016x}".encode()) in self._needles.uids:
                        self._report.found.add(f"the uid of a withdrawn row ({name}){where}")
        file.seek(0)

    def index(self, store: Store, name: str) -> None:
        """Search the vectors of a search index."""
        digest_, num_bytes = store.checksum(name)
        try:
            index = VectorIndex.read(local_copy(store, DataFile(path=name, num_bytes=num_bytes, blake2b=digest_)))
        except ValueError:  # `verify` reports that it is damaged
            return
        for vectors in index.stored():
            self.vectors([digest("vector", row.tobytes()) for row in vectors])


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """The texts, in batches of about the size of a window."""
    batch, num_chars = list[str](), 0
    for text in texts:
        batch.append(text)
        num_chars += len(text)
        if num_chars > BLOCK_BYTES:
            yield batch
            batch, num_chars = [], 0
    yield batch
