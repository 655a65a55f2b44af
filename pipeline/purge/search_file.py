"""Searches one file for purged rows: all values of Parquet, members of tars, vectors, and every byte of the rest."""

import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.webdataset_tar import read_range, read_tar
from pairmill.pipeline.purge.keys import digest
from pairmill.pipeline.purge.needles import Needles
from pairmill.pipeline.purge.witness import caption_digests, picture_digest, vector_digests
from pairmill.pipeline.search.local_copy import local_copy
from pairmill.pipeline.search.vector_index import VectorIndex
from pairmill.schemas.manifest import DataFile

_BETWEEN_TAGS = re.compile(r"<[^>]*>|[\"']")


@dataclass
class FileReport:
    """What was found in a file."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    """What was searched: bytes, values, captions, vectors, pictures, members."""
    found: set[str] = field(default_factory=set)
    """What of the list is there."""
    digests: set[bytes] = field(default_factory=set)
    """Digests of captions, pictures and vectors of withdrawn rows that are there, perhaps because of another row."""


def search_file(store: Store, needles: Needles, name: str) -> FileReport:
    """Search one file of the output folder."""
    report = FileReport(name)
    search = _FileSearch(needles, report)
    with store.open(name) as file:
        head = file.read(4)
        file.seek(0)
        if head == b"PAR1":
            search.parquet(file)
        elif name.endswith(".tar"):
            search.tar(file)
        else:
            search.other(file.read())
    if name.endswith(".faiss"):
        search.index(store, name)
    return report


class _FileSearch:
    def __init__(self, needles: Needles, report: FileReport) -> None:
        self._needles, self._report = needles, report

    def raw(self, data: bytes, where: str = "") -> None:
        """Look for the values of the list."""
        self._report.counts["bytes"] += len(data)
        self._report.found.update(f"{value}{where}" for value in self._needles.in_bytes(data))

    def captions(self, texts: Sequence[str | None]) -> None:
        """Look for captions of withdrawn rows."""
        self._report.counts["captions"] += len(texts)
        self._report.digests |= {each for each in caption_digests(texts) if each in self._needles.captions}

    def vectors(self, digests: Sequence[bytes | None]) -> None:
        """Look for embeddings of withdrawn rows."""
        self._report.counts["vectors"] += len(digests)
        self._report.digests |= {each for each in digests if each in self._needles.vectors}

    def picture(self, data: bytes, where: str) -> None:
        """Look for stored pictures of withdrawn rows, and for pictures whose SHA-256 is in the list."""
        self._report.counts["pictures"] += 1
        if (found := picture_digest(data)) in self._needles.pictures:
            self._report.digests.add(found)
        if (sha256 := hashlib.sha256(data).hexdigest()) in self._needles.values.get("sha256", ()):
            self._report.found.add(f"a picture with sha256 {sha256}{where}")

    def parquet(self, file: IO[bytes]) -> None:
        """Every value of every column, the metadata, and which rows they are."""
        with pq.ParquetFile(file) as parquet:
            self.raw(json.dumps({str(k): str(v) for k, v in (parquet.metadata.metadata or {}).items()}).encode())
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                self._rows(table)
                for field_, column in zip(table.schema, table.columns, strict=True):
                    self._column(field_.name, column.combine_chunks())

    def _rows(self, table: pa.Table) -> None:
        """Rows that are withdrawn by their uid or position."""
        names = set(table.column_names)
        if "uid" in names and pa.types.is_string(table.schema.field("uid").type):
            for uid in table["uid"].to_pylist():
                if uid is not None and digest("uid", uid.encode()) in self._needles.uids:
                    self._report.found.add(f"the withdrawn row with uid {uid}")
        if "row_id" in names and not self._report.name.startswith("withdrawn/"):
            for row_id in set(table["row_id"].to_pylist()) & self._needles.row_ids:
                self._report.found.add(f"the withdrawn row {row_id}")
        if "pdq" in names:
            self._report.found.update(self._needles.near_pdq(table["pdq"]))

    def _column(self, name: str, column: pa.Array) -> None:
        where = f" (column {name})"
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        kind = column.type
        self._report.counts["values"] += len(column)
        if pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type):
            self.vectors(vector_digests(column))
        elif pa.types.is_struct(kind):
            for index in range(kind.num_fields):
                self._column(f"{name}.{kind.field(index).name}", column.field(index))
        elif pa.types.is_map(kind):
            self._column(name, column.keys)
            self._column(name, column.items)
        elif pa.types.is_nested(kind):
            self._column(name, column.flatten())
        elif pa.types.is_dictionary(kind):
            self._column(name, column.dictionary)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            self._texts(column.drop_null().to_pylist(), where)
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            self._binaries(column.drop_null().to_pylist(), where)

    def _texts(self, texts: list[str], where: str) -> None:
        self.raw("\n".join(texts).encode("utf-8", "surrogatepass"), where)
        self._report.found.update(f"{value}{where}" for value in self._needles.in_cells(texts))
        self.captions(texts)

    def _binaries(self, values: list[bytes], where: str) -> None:
        self.raw(b"\n".join(values), where)
        texts = [value.decode("utf-8", "replace") for value in values]
        self._report.found.update(f"{value}{where}" for value in self._needles.in_cells(texts))
        self.captions(texts)
        for value in values:
            self.picture(value, where)

    def tar(self, file: IO[bytes]) -> None:
        """Names, texts, JSON and pictures."""
        for name, offset, length in read_tar(file):
            self._report.counts["members"] += 1
            data, where = read_range(file, offset, length), f" (member {name})"
            self.raw(name.encode("utf-8", "surrogateescape"))
            if digest("uid", name.partition(".")[0][:32].encode("utf-8", "replace")) in self._needles.uids:
                self._report.found.add(f"a sample of a withdrawn row{where}")
            if name.endswith((".txt", ".json")):
                self.text(data, where)
            else:
                self.picture(data, where)

    def text(self, data: bytes, where: str = "") -> None:
        """A text, JSON or HTML: its bytes, and all that could be a caption in it."""
        self.raw(data, where)
        text = data.decode("utf-8", "replace")
        pieces = [text, *text.splitlines(), *(html.unescape(each) for each in _BETWEEN_TAGS.split(text))]
        with suppress(ValueError, RecursionError):
            pieces += _strings(json.loads(text))
        self.captions(pieces)

    def other(self, data: bytes) -> None:
        """A file of any other kind; arrays are searched for vectors too."""
        if self._report.name.endswith(".safetensors"):
            self._tensors(data)
        if b"\0" in data[:1_000]:
            self.raw(data)
        else:
            self.text(data)

    def _tensors(self, data: bytes) -> None:
        try:
            tensors = load(data)
        except SafetensorError:
            return
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and tensor.dtype == np.float16:
                self.vectors([digest("vector", row.tobytes()) for row in np.ascontiguousarray(tensor)])
            elif tensor.ndim == 2 and tensor.dtype == np.uint64 and tensor.shape[1] == 2:
                for high, low in tensor.tolist():
                    if digest("uid", f"{high:016x}{low:016x}".encode()) in self._needles.uids:
                        self._report.found.add(f"the uid of a withdrawn row ({name})")

    def index(self, store: Store, name: str) -> None:
        """The vectors of a search index."""
        digest_, num_bytes = store.checksum(name)
        try:
            index = VectorIndex.read(local_copy(store, DataFile(path=name, num_bytes=num_bytes, blake2b=digest_)))
        except ValueError:  # `verify` says that it is damaged
            return
        for vectors in index.stored():
            self.vectors([digest("vector", row.tobytes()) for row in vectors])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
