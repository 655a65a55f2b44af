"""The export formats: which columns each one reads, and which files it writes for one part of the rows."""

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pairmill.pipeline.dataset.webdataset_tar import MEMBER_COLUMNS, read_range, write_tar
from pairmill.pipeline.export.hf_features import features, has_feature
from pairmill.pipeline.image import sniff
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.jobs import ImagesConfig
from pairmill.schemas.pairs import STORED, is_embedding, score_column_names

Write = Callable[[IO[bytes]], object]
"""Writes the content of one file."""

_ROW_GROUP_ROWS = 512
_ROW_GROUP_BYTES = 64 << 20
"""Bytes of pictures that a reader needs in memory at once. Arrow cannot read a column of structs of 2 GiB or more."""


class FormatError(PairmillError, ValueError):
    """The rows lack something that the format needs; the message says what to do."""


@dataclass(frozen=True)
class Part:
    """The rows of one part of an export, in order. If the format needs pictures, they are in a temporary file."""

    stem: str
    """The part's number, such as `00012`: file names sort in order, without gaps."""
    rows: pa.Table
    picture_file: IO[bytes]
    picture_ranges: Sequence[tuple[int, int]]
    """(offset, length) in that file for each row."""

    def pictures(self) -> Iterator[bytes]:
        """The pictures in row order."""
        return (read_range(self.picture_file, *picture_range) for picture_range in self.picture_ranges)


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
        """The same names, each with the function that writes the file. Raises FormatError."""


@dataclass(frozen=True)
class WebDataset:
    """`00000.tar` with uid.jpg, uid.txt and uid.json per pair: https://github.com/webdataset/webdataset

    Trainers look for jpg, png and webp. Pictures in any other format, which only embedded corpora have, become PNGs.
    """

    models: Sequence[str]
    """Aliases of the models whose similarities go into uid.json."""
    has_captions: bool
    needs_pictures: bool = True

    def columns(self, schema: pa.Schema) -> list[str]:
        """The columns that the .txt and .json members are made from."""
        similarities = {score_column_names(alias).similarity for alias in self.models}
        return [*MEMBER_COLUMNS, "caption_clean", *(name for name in schema.names if name in similarities)]

    def names(self, stem: str) -> list[str]:
        """One tar."""
        return [f"{stem}.tar"]

    def files(self, part: Part) -> dict[str, Write]:
        """The tar. A missing caption is an error, because trainers would learn from an empty text."""
        if self.has_captions and (missing := part.rows["caption_clean"].null_count):
            raise FormatError(f"{missing:,} selected rows have no caption: add `where: caption_clean is not None`")
        pictures = (_for_trainers(picture) for picture in part.pictures())
        return dict.fromkeys(self.names(part.stem), lambda file: write_tar(file, part.rows, pictures))


@dataclass(frozen=True)
class ParquetFiles:
    """`00000.parquet` with all metadata, and the pictures in a column that Hugging Face `datasets` reads as `Image`.

    https://huggingface.co/docs/hub/datasets-image, "Parquet format"
    """

    models: Sequence[str]
    """Aliases of the models whose embeddings are left out."""
    needs_pictures: bool = True

    def columns(self, schema: pa.Schema) -> list[str]:
        """All but embeddings, tar offsets, and types that `datasets` cannot express."""
        left_out = {*STORED.names, *embedding_columns(self.models)}
        return [field.name for field in schema if field.name not in left_out and has_feature(field.type)]

    def names(self, stem: str) -> list[str]:
        """One Parquet file."""
        return [f"{stem}.parquet"]

    def files(self, part: Part) -> dict[str, Write]:
        """The Parquet file."""
        return dict.fromkeys(self.names(part.stem), lambda file: self._write(part, file))

    def _write(self, part: Part, file: IO[bytes]) -> None:
        image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        metadata = {"huggingface": json.dumps({"info": {"features": features(part.rows.schema)}})}
        schema = pa.schema([image, *part.rows.schema], metadata)
        pictures = part.pictures()
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for start, end in _row_groups([length for _, length in part.picture_ranges]):
                columns = part.rows.slice(start, end - start).columns
                structs = [{"bytes": next(pictures), "path": None} for _ in range(start, end)]
                writer.write_table(pa.table([pa.array(structs, image.type), *columns], schema=schema))


@dataclass(frozen=True)
class ClipRetrieval:
    """`img_emb/img_emb_0000.npy`, `text_emb/...` and `metadata/metadata_0000.parquet`, row for row, float16.

    Read by autofaiss, embedding-reader and clip-retrieval: https://github.com/rom1504/clip-retrieval, "inference".
    """

    model: str
    """Alias of the model whose embeddings are written."""
    models: Sequence[str]
    """Aliases of all models of the dataset, since embeddings are not metadata."""
    has_captions: bool
    needs_pictures: bool = False

    def columns(self, schema: pa.Schema) -> list[str]:
        """The model's embeddings, and all metadata."""
        left_out = {*STORED.names, *embedding_columns(self.models)}
        metadata = [name for name in schema.names if name not in left_out]
        return [*metadata, *(array.column for array in self._arrays())]

    def names(self, stem: str) -> list[str]:
        """The metadata, and one array per kind of embedding."""
        return [
            f"metadata/metadata_{stem}.parquet",
            *(f"{each.name}/{each.name}_{stem}.npy" for each in self._arrays()),
        ]

    def files(self, part: Part) -> dict[str, Write]:
        """The metadata, and the arrays row for row."""
        metadata = part.rows.drop_columns([array.column for array in self._arrays()])
        arrays = [_npy(array.read(part.rows)) for array in self._arrays()]
        return dict(zip(self.names(part.stem), [_parquet(metadata), *arrays], strict=True))

    def _arrays(self) -> list["EmbeddingArray"]:
        return embedding_arrays(self.model, self.has_captions, "img_emb", "text_emb")


@dataclass(frozen=True)
class DataComp:
    """`metadata/00000.parquet` and `metadata/00000.npz`, named as in DataComp's pools. `subset.npy` is written last.

    https://github.com/mlfoundations/datacomp, "Filtering". For a model with the alias `clip_b32`, similarities are
    called `clip_b32_similarity_score`, arrays `b32_img` and `b32_txt`.
    """

    models: Sequence[str]
    """Aliases of the models whose similarities and embeddings are written."""
    has_captions: bool
    needs_pictures: bool = False

    def columns(self, schema: pa.Schema) -> list[str]:
        """DataComp's own columns, and those of the models."""
        similarities = [score_column_names(alias).similarity for alias in self.models]
        own = ["uid", "url", "caption", "original_width", "original_height", "sha256"]
        return [*own, *similarities, *(array.column for array in self._arrays())]

    def names(self, stem: str) -> list[str]:
        """The metadata, and one archive of arrays."""
        return [f"metadata/{stem}.parquet", f"metadata/{stem}.npz"]

    def files(self, part: Part) -> dict[str, Write]:
        """The metadata, and the arrays row for row."""
        arrays = {array.name: array.read(part.rows) for array in self._arrays()}
        metadata = part.rows.drop_columns([array.column for array in self._arrays()])
        names = {score_column_names(alias).similarity: f"{alias}_similarity_score" for alias in self.models}
        names["caption"] = "text"
        metadata = metadata.rename_columns([names.get(name, name) for name in metadata.column_names])
        archive: Write = lambda file: np.savez(file, **arrays)  # type: ignore[arg-type]  # noqa: E731
        return dict(zip(self.names(part.stem), [_parquet(metadata), archive], strict=True))

    def _arrays(self) -> list["EmbeddingArray"]:
        return [
            array
            for alias in self.models
            for array in embedding_arrays(
                alias, self.has_captions, f"{datacomp_prefix(alias)}_img", f"{datacomp_prefix(alias)}_txt"
            )
        ]


def datacomp_prefix(alias: str) -> str:
    """The prefix of a model's array names: `b32` for `clip_b32`."""
    return alias.removeprefix("clip_")


def check_scores(rows: pa.Table) -> None:
    """Raise FormatError for a NaN or infinite similarity or embedding, which outputs before 0.2 may contain."""
    for field, column in zip(rows.schema, rows.columns, strict=True):
        numbers = pc.list_flatten(column) if is_embedding(field) else column
        if not is_embedding(field) and not (field.name.startswith("similarity") and pa.types.is_floating(field.type)):
            continue
        bad = pc.sum(pc.invert(pc.is_finite(numbers))).as_py() or 0
        if bad:
            raise FormatError(
                f"{field.name} holds NaN or infinity ({bad:,} numbers in one part): select without these rows, by "
                f"`where: {re.sub('^(image|text)_embedding', 'similarity', field.name)} >= -1`"
            )


def embedding_columns(models: Sequence[str]) -> set[str]:
    """Names of the embedding columns of these models."""
    columns = [score_column_names(alias) for alias in models]
    return {name for names in columns for name in (names.image_embedding, names.text_embedding)}


@dataclass(frozen=True)
class EmbeddingArray:
    """An embedding column, and the name of the array that it becomes."""

    column: str
    name: str
    null_with: str
    """A narrow column that is null in the same rows."""

    def read(self, rows: pa.Table) -> npt.NDArray[np.float16]:
        """(rows, dim) float16. Raises FormatError for a null, which an array cannot represent."""
        array = rows[self.column].combine_chunks()
        if array.null_count:
            raise FormatError(
                f"{self.column} is null in {array.null_count:,} selected rows: "
                f"add `where: {self.null_with} is not None`"
            )
        return np.asarray(array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1), np.float16)


def embedding_arrays(alias: str, has_captions: bool, image_name: str, text_name: str) -> list[EmbeddingArray]:
    """The arrays of one model; without captions, only that of the pictures."""
    columns = score_column_names(alias)
    arrays = [EmbeddingArray(columns.image_embedding, image_name, columns.similarity if has_captions else "sha256")]
    if has_captions:
        arrays.append(EmbeddingArray(columns.text_embedding, text_name, null_with=columns.similarity))
    return arrays


def _parquet(table: pa.Table) -> Write:
    return lambda file: pq.write_table(table, file, compression="zstd")


def _npy(array: npt.NDArray[np.float16]) -> Write:
    return lambda file: np.save(file, array)


def _for_trainers(picture: bytes) -> bytes:
    """The picture itself if trainers know its format, else a PNG of its pixels."""
    if sniff.image_format(picture[: sniff.FORMAT_HEAD_BYTES]) in ("JPEG", "PNG", "WEBP"):
        return picture
    file = io.BytesIO()
    Image.fromarray(ImageProcessor(ImagesConfig()).pixels(picture)).save(file, "png")
    return file.getvalue()


def _row_groups(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[start, end) of each row group, from the lengths of the pictures in bytes."""
    start = num_bytes = 0
    for row, length in enumerate(lengths):
        if row > start and (row - start == _ROW_GROUP_ROWS or num_bytes + length > _ROW_GROUP_BYTES):
            yield start, row
            start, num_bytes = row, 0
        num_bytes += length
    if lengths:
        yield start, len(lengths)
