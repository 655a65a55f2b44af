"""What each format writes for one stretch of rows. A file is a name and a function that writes its content."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pairmill.pipeline.dataset.webdataset_tar import MEMBER_COLUMNS, read_range, write_tar
from pairmill.pipeline.image import sniff
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.jobs import ImagesConfig
from pairmill.schemas.pairs import STORED

Write = Callable[[IO[bytes]], object]

_ROW_GROUP_ROWS = 512
_ROW_GROUP_BYTES = 64 << 20
"""Of pictures: what a reader holds at once. Arrow does not read a column of structs of 2 GiB and more."""


class FormatError(PairmillError, ValueError):
    """The rows lack what the format needs; the message says what to choose instead."""


@dataclass(frozen=True)
class Stretch:
    """The rows of one output file, in order, and the places of their pictures in a file aside, if they are wanted."""

    stem: str
    """`00012`: numbers sort, and have no gaps."""
    rows: pa.Table
    aside: IO[bytes]
    places: Sequence[tuple[int, int]]

    def pictures(self) -> Iterator[bytes]:
        """In the order of the rows."""
        return (read_range(self.aside, *place) for place in self.places)


class Format(Protocol):
    """One layout of files."""

    @property
    def wants_pictures(self) -> bool:
        """Whether pictures are read."""

    def columns(self, schema: pa.Schema) -> list[str]:
        """What is read of the dataset."""

    def files(self, stretch: Stretch) -> dict[str, Write]:
        """Name -> writer."""


@dataclass(frozen=True)
class WebDataset:
    """`00000.tar`: uid.jpg, uid.txt, uid.json per pair. https://github.com/webdataset/webdataset

    Trainers look for jpg, png and webp: a picture of a held corpus in any other format becomes a PNG of its pixels.
    """

    has_captions: bool
    wants_pictures: bool = True

    def columns(self, schema: pa.Schema) -> list[str]:
        """What the .txt and .json hold."""
        return [*MEMBER_COLUMNS, "caption_clean", *(name for name in schema.names if name.startswith("similarity_"))]

    def files(self, stretch: Stretch) -> dict[str, Write]:
        """One tar. Raises FormatError for a missing caption, which would be an empty text to train on."""
        if self.has_captions and (lacking := stretch.rows["caption_clean"].null_count):
            raise FormatError(f"{lacking:,} chosen rows have no caption: add `where: caption_clean is not None`")
        pictures = (_for_trainers(picture) for picture in stretch.pictures())
        return {f"{stretch.stem}.tar": lambda file: write_tar(file, stretch.rows, pictures)}


@dataclass(frozen=True)
class ParquetFiles:
    """`00000.parquet` with all metadata, and the pictures in a column that Hugging Face `datasets` reads as `Image`.

    https://huggingface.co/docs/hub/datasets-image, "Parquet format"
    """

    wants_pictures: bool = True

    def columns(self, schema: pa.Schema) -> list[str]:
        """All but embeddings, the places of the pictures, and types that `datasets` has no name for."""
        plain = [field.name for field in schema if "_embedding_" not in field.name and _is_known(field.type)]
        return [name for name in plain if name not in STORED.names]

    def files(self, stretch: Stretch) -> dict[str, Write]:
        """One Parquet file."""
        return {f"{stretch.stem}.parquet": lambda file: self._write(stretch, file)}

    def _write(self, stretch: Stretch, file: IO[bytes]) -> None:
        image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        features = {"image": {"_type": "Image"}} | {field.name: _feature(field.type) for field in stretch.rows.schema}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        schema = pa.schema([image, *stretch.rows.schema], metadata)
        pictures = stretch.pictures()
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for start, end in _row_groups([length for _, length in stretch.places]):
                columns = stretch.rows.slice(start, end - start).columns
                structs = [{"bytes": next(pictures), "path": None} for _ in range(start, end)]
                writer.write_table(pa.table([pa.array(structs, image.type), *columns], schema=schema))


@dataclass(frozen=True)
class ClipRetrieval:
    """`img_emb/img_emb_0000.npy`, `text_emb/...` and `metadata/metadata_0000.parquet`, row for row, float16.

    What autofaiss, embedding-reader and clip-retrieval read: https://github.com/rom1504/clip-retrieval, "inference".
    """

    alias: str
    has_captions: bool
    wants_pictures: bool = False

    def columns(self, schema: pa.Schema) -> list[str]:
        """One model's embeddings, and all other metadata."""
        plain = [name for name in schema.names if "_embedding_" not in name and name not in STORED.names]
        return [*plain, *(f"{side}_embedding_{self.alias}" for side in self._sides())]

    def files(self, stretch: Stretch) -> dict[str, Write]:
        """An array per side, and the metadata."""
        plain = stretch.rows.drop_columns([f"{side}_embedding_{self.alias}" for side in self._sides()])
        result: dict[str, Write] = {
            f"metadata/metadata_{stretch.stem}.parquet": lambda file: pq.write_table(plain, file, compression="zstd")
        }
        for side, name in self._sides().items():
            array = embeddings(stretch.rows, f"{side}_embedding_{self.alias}")
            result[f"{name}/{name}_{stretch.stem}.npy"] = lambda file, array=array: np.save(file, array)  # type: ignore[misc]
        return result

    def _sides(self) -> dict[str, str]:
        return {"image": "img_emb", "text": "text_emb"} if self.has_captions else {"image": "img_emb"}


@dataclass(frozen=True)
class DataComp:
    """`metadata/00000.parquet` and `metadata/00000.npz`, named as in DataComp's pools; `subset.npy` comes at the end.

    https://github.com/mlfoundations/datacomp, "Filtering": similarities as `clip_b32_similarity_score`, arrays as
    `b32_img` and `b32_txt`, where the model's alias is `clip_b32`.
    """

    aliases: Sequence[str]
    has_captions: bool
    wants_pictures: bool = False

    def columns(self, schema: pa.Schema) -> list[str]:
        """DataComp's, and every model's."""
        scores = [f"similarity_{alias}" for alias in self.aliases]
        return ["uid", "url", "caption", "original_width", "original_height", "sha256", *scores, *self._arrays()]

    def files(self, stretch: Stretch) -> dict[str, Write]:
        """The metadata, and one archive of arrays in the same order."""
        rows = stretch.rows
        names = {"caption": "text"} | {f"similarity_{alias}": f"{alias}_similarity_score" for alias in self.aliases}
        plain = rows.select([name for name in rows.column_names if "_embedding_" not in name])
        plain = plain.rename_columns([names.get(name, name) for name in plain.column_names])
        arrays = {short: embeddings(rows, name) for name, short in self._arrays().items()}
        return {
            f"metadata/{stretch.stem}.parquet": lambda file: pq.write_table(plain, file, compression="zstd"),
            f"metadata/{stretch.stem}.npz": lambda file: np.savez(file, **arrays),  # type: ignore[arg-type]
        }

    def _arrays(self) -> dict[str, str]:
        sides = {"image": "img", "text": "txt"} if self.has_captions else {"image": "img"}
        return {
            f"{side}_embedding_{alias}": f"{alias.removeprefix('clip_')}_{short}"
            for alias in self.aliases
            for side, short in sides.items()
        }


def embeddings(rows: pa.Table, name: str) -> npt.NDArray[np.float16]:
    """(rows, dim) float16. Raises FormatError for a null: an array has no place for it."""
    column = rows[name].combine_chunks()
    if column.null_count:
        raise FormatError(
            f"{name} is null for {column.null_count:,} chosen rows: add `where: {_needed(name)} is not None`"
        )
    array = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return np.asarray(array, np.float16)


def _for_trainers(picture: bytes) -> bytes:
    if sniff.image_format(picture[: sniff.ENOUGH]) in ("JPEG", "PNG", "WEBP"):
        return picture
    file = io.BytesIO()
    Image.fromarray(ImageProcessor(ImagesConfig()).pixels(picture)).save(file, "png")
    return file.getvalue()


def _row_groups(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[start, end) of rows whose pictures have these lengths."""
    start = num_bytes = 0
    for row, length in enumerate(lengths):
        if row > start and (row - start == _ROW_GROUP_ROWS or num_bytes + length > _ROW_GROUP_BYTES):
            yield start, row
            start, num_bytes = row, 0
        num_bytes += length
    if lengths:
        yield start, len(lengths)


def _needed(name: str) -> str:
    return "caption_clean" if name.startswith("text_") else "similarity"


def _is_known(kind: pa.DataType) -> bool:
    return not (pa.types.is_map(kind) or pa.types.is_dictionary(kind) or pa.types.is_union(kind))


def _feature(kind: pa.DataType) -> Any:
    """A column's type as `datasets` writes it into its schemas."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    names = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}
