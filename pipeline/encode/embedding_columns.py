"""Makes the columns of a model: its embeddings and its similarity. Only this module rounds embeddings to float16.

The similarity is computed in float32, before the embeddings are rounded to float16 for storage.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.encode.clip_model import ClipModel, Floats
from pairmill.schemas.pairs import embedding_type, score_columns

Indices = npt.NDArray[np.int64]


def append_scores(
    table: pa.Table, model: ClipModel, rows: Indices, images: tuple[Floats, Indices], captions: tuple[Floats, Indices]
) -> pa.Table:
    """Append the `score_columns` of one model to a shard's table.

    `rows`: indices of the table's rows that are pairs, [pairs]. `images` and `captions`: distinct embeddings, float32
    [distinct, dim], and the index of each pair's embedding among them, [pairs], or -1 if the pair has none.
    """
    image, has_image = _per_pair(*images), images[1] >= 0  # [pairs, dim], [pairs]
    text, has_text = _per_pair(*captions), captions[1] >= 0
    similarity = np.einsum("nd,nd->n", image, text)  # float32 [pairs]
    names = score_columns(model.alias, model.embedding_dim).names
    columns = (
        pa.array(similarity.astype(np.float32), mask=~(has_image & has_text)),
        float16_column(image, has_image),
        float16_column(text, has_text),
    )
    pair_of_row = np.full(table.num_rows, -1)
    pair_of_row[rows] = np.arange(len(rows))
    indices = pa.array(pair_of_row, mask=pair_of_row < 0)  # [rows of the table]
    for name, column in zip(names, columns, strict=True):
        table = table.append_column(name, column.take(indices))
    return table


def float16_column(embeddings: Floats, is_valid: npt.NDArray[np.bool_]) -> pa.Array:
    """float32 [n, dim] -> fixed-size lists of float16, which are null where `is_valid` [n] is False."""
    flat = pa.array(embeddings.astype(np.float16).ravel())  # [n * dim]
    return pa.FixedSizeListArray.from_arrays(flat, type=embedding_type(embeddings.shape[1]), mask=pa.array(~is_valid))


def _per_pair(embeddings: Floats, indices: Indices) -> Floats:
    """float32 [distinct, dim] -> [pairs, dim], with zeros where the index is -1."""
    found = np.zeros((len(indices), embeddings.shape[1]), np.float32)
    found[indices >= 0] = embeddings[indices[indices >= 0]]
    return found
