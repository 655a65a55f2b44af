"""Defines the export formats of embeddings: arrays and metadata in the layouts of clip-retrieval and DataComp."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.parquet import write_rows
from pairmill.pipeline.dataset.subset import WEIGHT
from pairmill.pipeline.export.formats import FormatError, Part, Write, embedding_columns
from pairmill.pipeline.export.hf_features import expressible
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.pairs import CHECKSUM, STORED, score_column_names

_DATACOMP_NAMES = {"vit-b-32": "clip_b32", "vit-l-14": "clip_l14"}
"""open_clip's name for an architecture that DataComp's scripts know (`--arch b32`, `--arch l14`) -> DataComp's name."""


@dataclass(frozen=True)
class ClipRetrieval:
    """Writes `img_emb/img_emb_0000.npy`, `text_emb/...` and `metadata/metadata_0000.parquet`, in the same row order.
    Embeddings are float16.

    autofaiss, embedding-reader and clip-retrieval read this layout: https://github.com/rom1504/clip-retrieval,
    "inference".
    """

    model: str
    """Alias of the model whose embeddings are written."""
    models: Sequence[str]
    """Aliases of all models of the dataset, whose embeddings are left out of the metadata."""
    has_captions: bool
    image_path: Literal["file", "key", "uid"] = "uid"
    """The content of `image_path` in the metadata: the picture's file, its sample's key in a tar, or its uid."""
    needs_pictures: bool = False

    def columns(self, schema: pa.Schema) -> list[str]:
        """The columns with the model's embeddings, and all metadata."""
        left_out = {*STORED.names, CHECKSUM.name, *embedding_columns(self.models)}
        metadata = [name for name in schema.names if name not in left_out]
        path = [self._path_column] if self.image_path == "file" and "image_path" not in schema.names else []
        return [*metadata, *path, *(array.column for array in self._arrays())]

    def names(self, stem: str) -> list[str]:
        """Names of the metadata file, and of one array per kind of embedding."""
        return [
            f"metadata/metadata_{stem}.parquet",
            *(f"{each.name}/{each.name}_{stem}.npy" for each in self._arrays()),
        ]

    def files(self, part: Part) -> dict[str, Write]:
        """The writers of the metadata, and of the arrays with the same rows."""
        metadata = self._metadata(part.rows.drop_columns([array.column for array in self._arrays()]))
        arrays = [_npy(array.read(part.rows)) for array in self._arrays()]
        return dict(zip(self.names(part.stem), [_parquet(metadata), *arrays], strict=True))

    def _metadata(self, rows: pa.Table) -> pa.Table:
        """Add the column `image_path`, from which clip-retrieval gets its pictures, unless the user has a column of
        that name."""
        if "image_path" in rows.column_names:
            return rows
        paths = rows[self._path_column]
        return (rows.drop_columns(self._path_column) if self.image_path == "file" else rows).append_column(
            "image_path", paths
        )

    @property
    def _path_column(self) -> str:
        return {"file": "image_tar"}.get(self.image_path, self.image_path)

    def _arrays(self) -> list["EmbeddingArray"]:
        return embedding_arrays(self.model, self.has_captions, "img_emb", "text_emb")


@dataclass(frozen=True)
class DataComp:
    """Writes `metadata/00000.parquet` and `metadata/00000.npz`, named as in DataComp's pools. An export also writes
    `subset.npy` at the end.

    https://github.com/mlfoundations/datacomp, "Filtering". The similarities of a model called `clip_b32` are in
    `clip_b32_similarity_score`, and its embeddings in the arrays `b32_img` and `b32_txt`.
    """

    models: Sequence[str]
    """Aliases of the models whose similarities and embeddings are written."""
    model_names: Sequence[str]
    """The name of each of these models in DataComp's files."""
    has_captions: bool
    has_weights: bool = False
    needs_pictures: bool = False

    def columns(self, schema: pa.Schema) -> list[str]:
        """DataComp's own columns, the weight, and the models' columns."""
        similarities = [score_column_names(alias).similarity for alias in self.models]
        own = ["uid", "url", "caption", "original_width", "original_height", "sha256"]
        own += [WEIGHT] if self.has_weights else []
        return [*own, *similarities, *(array.column for array in self._arrays())]

    def names(self, stem: str) -> list[str]:
        """Names of the metadata file, and of one archive of arrays."""
        return [f"metadata/{stem}.parquet", f"metadata/{stem}.npz"]

    def files(self, part: Part) -> dict[str, Write]:
        """The writers of the metadata, and of the arrays with the same rows."""
        arrays = {array.name: array.read(part.rows) for array in self._arrays()}
        metadata = part.rows.drop_columns([array.column for array in self._arrays()])
        index = metadata.schema.get_field_index("caption")
        captions = pc.fill_null(metadata["caption"], "")  # DataComp's filters expect text
        metadata = metadata.set_column(index, "caption", captions)
        names = {
            score_column_names(alias).similarity: f"{name}_similarity_score"
            for alias, name in zip(self.models, self.model_names, strict=True)
        }
        names["caption"] = "text"
        metadata = metadata.rename_columns([names.get(name, name) for name in metadata.column_names])
        archive: Write = lambda file: np.savez(file, **arrays)  # type: ignore[arg-type]  # noqa: E731
        return dict(zip(self.names(part.stem), [_parquet(metadata), archive], strict=True))

    def _arrays(self) -> list["EmbeddingArray"]:
        return [
            array
            for alias, name in zip(self.models, self.model_names, strict=True)
            for array in embedding_arrays(
                alias, self.has_captions, f"{array_prefix(name)}_img", f"{array_prefix(name)}_txt"
            )
        ]


def array_prefix(name: str) -> str:
    """The prefix of a model's array names: `b32` for `clip_b32`."""
    return name.removeprefix("clip_")


def datacomp_names(models: Sequence[ModelConfig]) -> list[str]:
    """Names of the models in DataComp's files, in order.

    DataComp's scripts know two architectures by fixed names, whatever their aliases are: `clip_b32` is a ViT-B/32 and
    `clip_l14` a ViT-L/14. If several models have the same architecture, OpenAI's weights get the name, because
    DataComp's own scores come from them. All other models keep their aliases.
    """
    names = {model.alias: model.alias for model in models}
    for model in sorted(models, key=lambda model: model.pretrained != "openai"):
        known = _DATACOMP_NAMES.get(model.name.lower().removesuffix("-quickgelu"))
        if known is not None and known not in names.values():
            names[model.alias] = known
    return list(names.values())


@dataclass(frozen=True)
class EmbeddingArray:
    """An embedding column, and the name of the array that it becomes."""

    column: str
    name: str
    null_with: str
    """A column of small values that is null in the same rows."""

    def read(self, rows: pa.Table) -> npt.NDArray[np.float16]:
        """The embeddings, float16 of shape (rows, dim). Raises FormatError for a null, which an array cannot
        represent."""
        array = rows[self.column].combine_chunks()
        if array.null_count:
            raise FormatError(
                f"{self.column} is null in {counted(array.null_count, 'selected row')}: "
                f"add `where: {self.null_with} is not None`"
            )
        return np.asarray(array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1), np.float16)


def embedding_arrays(alias: str, has_captions: bool, image_name: str, text_name: str) -> list[EmbeddingArray]:
    """The arrays of one model; without captions, only the array for the pictures."""
    columns = score_column_names(alias)
    arrays = [EmbeddingArray(columns.image_embedding, image_name, columns.similarity if has_captions else "sha256")]
    if has_captions:
        arrays.append(EmbeddingArray(columns.text_embedding, text_name, null_with=columns.similarity))
    return arrays


def _parquet(table: pa.Table) -> Write:
    return lambda file: write_rows(expressible(table), file)


def _npy(array: npt.NDArray[np.float16]) -> Write:
    return lambda file: np.save(file, array)
