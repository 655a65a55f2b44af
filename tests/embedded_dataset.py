"""Adds the embeddings of an added model to datasets that `synthetic_dataset` writes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.manifest import ColumnsManifest, DataFile, ShardManifest
from pairmill.schemas.pairs import embedding_type, score_column_names
from tests.synthetic_dataset import default_columns, write_dataset

Vectors = npt.NDArray[np.float16]


def add_embeddings(
    dataset: Path,
    alias: str,
    image: Callable[[slice], Vectors],
    text: Callable[[slice], Vectors] | None = None,
    weights: str = "w" * 64,
    quick_gelu: bool = False,
) -> None:
    """Write the embeddings of every shard that lacks them.

    `image`, `text`: functions from a slice of all rows to their vectors [rows, dim]; a vector that begins with NaN
    becomes null. Without `text`, only picture embeddings are written. `weights`: SHA-256 of the model's weights.
    `quick_gelu`: their activation.
    """
    (dataset / f"columns/{alias}/manifests").mkdir(parents=True, exist_ok=True)
    (dataset / f"columns/{alias}/model.json").write_text("{}")
    for path in sorted((dataset / "manifests").iterdir()):
        shard = ShardManifest.model_validate_json(path.read_bytes())
        if not (dataset / f"columns/{alias}/manifests/{path.name}").exists():
            rows = slice(shard.first_row, shard.first_row + shard.num_rows)
            names = score_column_names(alias)
            columns = {names.image_embedding: _column(image(rows))}
            if text is not None:
                columns[names.text_embedding] = _column(text(rows))
            contract = ScoreContract(alias, "tiny", None, weights, {}, "float32", 77, quick_gelu=quick_gelu)
            footer = {"models": [asdict(contract)]}
            table = pa.table(columns).replace_schema_metadata({"pairmill": json.dumps(footer)})
            _write(dataset, alias, shard, table)


def write_embedded(
    folder: Path, image: Vectors, text: Vectors | None = None, shard_rows: int = 700, order: Any = None
) -> Path:
    """Write a dataset with these embeddings of the model `m`, in which every row is kept. Returns its folder.

    The uid of a row is its number, and `similarity` is a permutation of the numbers. `order`: the numbers of the rows
    in the order in which they are written.
    """
    rows = np.arange(len(image)) if order is None else np.asarray(order)
    whole = default_columns(0, 0, len(image), 1)
    whole["uid"] = pa.array([f"{row:032x}" for row in range(len(image))])
    whole["status"] = pa.array(["ok"] * len(image))
    whole["similarity"] = pa.array(np.random.default_rng(3).permutation(len(image)).astype(np.float32))
    whole = {name: column.take(pa.array(rows)) for name, column in whole.items()}

    def columns(shard: int, first: int, num_rows: int, seed: int) -> dict[str, pa.Array]:
        return {name: column.slice(first, num_rows) for name, column in whole.items()}

    write_dataset(folder, len(image), shard_rows=shard_rows, columns=columns)
    of_text = None if text is None else lambda span: text[rows[span]]
    add_embeddings(folder, "m", lambda span: image[rows[span]], of_text)
    return folder


def _write(dataset: Path, alias: str, shard: ShardManifest, table: pa.Table) -> None:
    path = f"columns/{alias}/{shard.shard:09d}.parquet"
    pq.write_table(table, dataset / path, row_group_size=1_024, compression="none", use_dictionary=False)
    data = (dataset / path).read_bytes()
    record = ColumnsManifest(
        shard=shard.shard,
        generation=0,
        pairs_blake2b=shard.files["pairs"].blake2b,
        rows=shard.pairs,
        file=DataFile(path=path, num_bytes=len(data), blake2b=hashlib.blake2b(data, digest_size=16).hexdigest()),
        job_fingerprint="0" * 32,
    )
    (dataset / f"columns/{alias}/manifests/{shard.name}").write_text(record.model_dump_json())


def _column(vectors: Vectors) -> pa.Array:
    values = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float16())
    kind = embedding_type(vectors.shape[1])
    is_null = pa.array(np.isnan(vectors[:, 0]))
    return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=is_null)
