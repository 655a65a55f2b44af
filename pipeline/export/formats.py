"""Defines the export formats with pictures: the columns that each reads, and the files that it writes for a part.

Pictures are written as bytes that look the same in every reader (image/plain.py).
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.webdataset_tar import MEMBER_COLUMNS, read_range, write_tar
from pairmill.pipeline.export.hf_features import expressible, features
from pairmill.pipeline.image.sniff import FORMAT_HEAD_BYTES
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.pairs import CHECKSUM, STORED, is_embedding, score_column_names

Write = Callable[[IO[bytes]], object]
"""Writes the content of one file."""

_ROW_GROUP_ROWS = 512
_ROW_GROUP_BYTES = 64 << 20
"""Bytes of pictures per row group, for which a reader needs memory. Arrow cannot read a column of structs of 2 GiB or
more."""


class FormatError(PairmillError, ValueError):
    """The rows lack something that the format needs; the message says what to do."""


@dataclass(frozen=True)
class Part:
    """The rows of one part of an export, in order. If the format needs pictures, these are in a temporary file."""

    stem: str
    """The part's number, such as `00012`: file names sort in order, without gaps."""
    rows: pa.Table
    picture_file: IO[bytes]
    picture_ranges: Sequence[tuple[int, int]]
    """(offset, length) in that file for each row."""
    keys: Sequence[str] | None = None
    """A unique name for each row, if rows are repeated. None: the uids are unique."""

    def pictures(self) -> Iterator[bytes]:
        """The pictures in row order."""
        return (read_range(self.picture_file, *picture_range) for picture_range in self.picture_ranges)

    def heads(self) -> Iterator[bytes]:
        """The first bytes of the pictures, which tell their formats."""
        return (read_range(self.picture_file, offset, FORMAT_HEAD_BYTES) for offset, _ in self.picture_ranges)


class Format(Protocol):
    """One layout of files."""

    @property
    def needs_pictures(self) -> bool:
        """Whether `files` reads the pictures of a part."""

    def columns(self, schema: pa.Schema) -> list[str]:
        """The columns of the dataset that `files` reads."""

    def names(self, stem: str) -> list[str]:
        """Names of a part's files, relative to the output."""

    def files(self, part: Part) -> dict[str, Write]:
        """Each of a part's file names, with the function that writes the file. Raises FormatError."""


@dataclass(frozen=True)
class WebDataset:
    """`00000.tar` with uid.jpg, uid.txt and uid.json per pair: https://github.com/webdataset/webdataset

    Trainers look for jpg, png and webp.
    """

    models: Sequence[str]
    """Aliases of the models whose similarities go into uid.json."""
    has_captions: bool
    carried: Sequence[str] = ()
    """Columns of the input that go into uid.json."""
    needs_pictures: bool = True

    def columns(self, schema: pa.Schema) -> list[str]:
        """The columns that the .txt and .json members are made from."""
        similarities = {score_column_names(alias).similarity for alias in self.models}
        scores = [name for name in schema.names if name in similarities]
        return [*MEMBER_COLUMNS, "caption_clean", *scores, *self.carried]

    def names(self, stem: str) -> list[str]:
        """Name of the tar."""
        return [f"{stem}.tar"]

    def files(self, part: Part) -> dict[str, Write]:
        """The writer of the tar. A missing caption is an error, because trainers would learn from empty text."""
        if self.has_captions and (missing := part.rows["caption_clean"].null_count):
            rows = counted(missing, "selected row")
            raise FormatError(f"at least {rows} without a caption: add `where: caption_clean is not None`")
        return dict.fromkeys(self.names(part.stem), lambda file: self._write(part, file))

    def _write(self, part: Part, file: IO[bytes]) -> None:
        write_tar(file, part.rows, part.pictures(), carried=self.carried, keys=part.keys)


@dataclass(frozen=True)
class ParquetFiles:
    """`00000.parquet` with all metadata, and the pictures in a column that Hugging Face `datasets` reads as `Image`.

    https://huggingface.co/docs/hub/datasets-image, "Parquet format"

    There is no README beside the files: Arrow and pandas would read it as data if they are given the folder.
    """

    models: Sequence[str]
    """Aliases of the models whose embeddings are left out."""
    needs_pictures: bool = True

    def columns(self, schema: pa.Schema) -> list[str]:
        """All columns except embeddings and tar offsets."""
        left_out = {*STORED.names, CHECKSUM.name, *embedding_columns(self.models)}
        return [name for name in schema.names if name not in left_out]

    def names(self, stem: str) -> list[str]:
        """Name of the Parquet file."""
        return [f"{stem}.parquet"]

    def files(self, part: Part) -> dict[str, Write]:
        """The writer of the Parquet file."""
        return dict.fromkeys(self.names(part.stem), lambda file: self._write(part, file))

    def _write(self, part: Part, file: IO[bytes]) -> None:
        image, rows = (
            pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            expressible(part.rows),
        )
        metadata = {"huggingface": json.dumps({"info": {"features": features(rows.schema)}})}
        schema = pa.schema([image, *rows.schema], metadata)
        pictures = part.pictures()
        with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
            for start, end in _row_groups([length for _, length in part.picture_ranges]):
                columns = rows.slice(start, end - start).columns
                structs = [{"bytes": next(pictures), "path": None} for _ in range(start, end)]
                writer.write_table(pa.table([pa.array(structs, image.type), *columns], schema=schema))


def check_scores(rows: pa.Table) -> None:
    """Raise FormatError for a NaN or infinite similarity or embedding, which outputs before 0.2 may contain."""
    for field, column in zip(rows.schema, rows.columns, strict=True):
        numbers = pc.list_flatten(column) if is_embedding(field) else column
        if not is_embedding(field) and not (field.name.startswith("similarity") and pa.types.is_floating(field.type)):
            continue
        bad = pc.sum(pc.invert(pc.is_finite(numbers))).as_py() or 0
        if bad:
            raise FormatError(
                f"{field.name} contains NaN or infinity ({bad:,} numbers in one part): select without these rows, with "
                f"`where: {re.sub('^(image|text)_embedding', 'similarity', field.name)} >= -1`"
            )


def embedding_columns(models: Sequence[str]) -> set[str]:
    """Names of the embedding columns of these models."""
    columns = [score_column_names(alias) for alias in models]
    return {name for names in columns for name in (names.image_embedding, names.text_embedding)}


def _row_groups(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[start, end) of each row group. `lengths`: sizes of the pictures in bytes."""
    start = num_bytes = 0
    for row, length in enumerate(lengths):
        if row > start and (row - start == _ROW_GROUP_ROWS or num_bytes + length > _ROW_GROUP_BYTES):
            yield start, row
            start, num_bytes = row, 0
        num_bytes += length
    if lengths:
        yield start, len(lengths)
