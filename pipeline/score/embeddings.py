"""Reads embeddings from rows, and finds the model whose embeddings a score uses."""

import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kind import Mask, ScoreError
from pairmill.schemas.index import EmbeddingKind
from pairmill.schemas.pairs import score_column_names

MAX_CELLS = 1 << 24
"""Maximum number of rows in a block times the number of vectors that they are compared with: 64 MB of float32."""
BLOCK_ROWS = 1_024
"""Rows to convert to float32 at a time. At 512 dimensions, a block takes 2 MB and stays in the cache, so a linear
head runs 13 times as fast as it would if the whole shard were converted first."""


_EXPONENT = np.uint16(0x7C00)
"""The exponent bits of a float16, all of which are set in NaN and infinity (IEEE 754)."""


def embedding_column(alias: str, of: EmbeddingKind) -> str:
    """The name of the column with the embeddings of pictures or captions."""
    names = score_column_names(alias)
    return names.image_embedding if of == "image" else names.text_embedding


def is_of_pictures(column: str) -> bool:
    """Whether an embedding column contains embeddings of pictures rather than captions."""
    return column.startswith("image_embedding_")


def chosen_model(snapshot: Snapshot, alias: str | None, of: EmbeddingKind = "image") -> Embeddings:
    """The embeddings of the model `alias`, or of the dataset's only model if `alias` is None.

    Raises ScoreError if there are several models to choose from, and EmbeddingsError if the dataset has no such model.
    """
    found = Embeddings.of(snapshot, alias, of)
    if alias is None and len(aliases := known_models(snapshot)) > 1:
        raise ScoreError(f"{snapshot.store.root} has several models; set model to one of {', '.join(aliases)}")
    return found


def known_models(snapshot: Snapshot) -> list[str]:
    """Aliases of the models whose embeddings the dataset has: first those of the job, then added models."""
    return [*(model.alias for model in snapshot.plan.job.models), *snapshot.added.models]


def read_vectors(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float16], Mask]:
    """(vectors, float16 [rows, dim]; whether each row has a valid embedding [rows]).

    Vectors that are null, NaN or infinite are replaced by zeros.
    """
    array: pa.FixedSizeListArray = column.combine_chunks()
    is_valid: Mask = array.is_valid().to_numpy(zero_copy_only=False)
    dim = array.type.list_size
    if is_valid.all():
        vectors = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    else:
        vectors = np.zeros((len(array), dim), np.float16)
        vectors[is_valid] = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    is_finite = _finite_rows(vectors)
    if not is_finite.all():
        vectors = np.where(is_finite[:, None], vectors, np.float16(0))
    return vectors, is_valid & is_finite


def _finite_rows(vectors: npt.NDArray[np.float16]) -> Mask:
    """Whether each row is free of NaN and infinity. Checks exponents, which is several times as fast as isfinite."""
    bits, found = vectors.view(np.uint16), np.ones(len(vectors), bool)
    for start in range(0, len(bits), BLOCK_ROWS):
        exponents = bits[start : start + BLOCK_ROWS] & _EXPONENT
        if exponents.size and exponents.max() == _EXPONENT:
            found[start : start + BLOCK_ROWS] = (exponents != _EXPONENT).all(axis=1)
    return found


def normalized(vectors: npt.NDArray[np.generic]) -> torch.Tensor:
    """L2-normalize vectors. float16 [n, dim] -> float32 [n, dim]. A vector of zeros stays zeros."""
    return torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float32)), dim=1)


def float32_blocks(
    vectors: npt.NDArray[np.float16], normalize: bool = True, compared_with: int = 1
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (rows, their vectors as float32 [block, dim]) block by block.

    Vectors are L2-normalized if `normalize`, which corrects their lengths after rounding to float16; a vector of zeros
    stays zeros. `compared_with`: the number of vectors that rows are compared with; if it is very large, blocks are
    smaller.
    """
    size = max(1, min(BLOCK_ROWS, MAX_CELLS // compared_with))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        halves = torch.from_numpy(vectors)
    for start in range(0, len(vectors), size):
        rows = slice(start, min(start + size, len(vectors)))
        block = halves[rows].float()
        yield rows, torch.nn.functional.normalize(block, dim=1) if normalize else block
