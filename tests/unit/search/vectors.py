"""Writes the embeddings of a model for generated metadata, as `embed --add-model` does."""

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.encode.embedding_columns import float16_column
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.schemas.manifest import ColumnsManifest, DataFile, ShardManifest, manifest_name
from tests.synthetic_dataset import write_dataset

ALIAS = "vec"
DIM = 16
SHARD_ROWS = 50
CONTRACT = {
    "alias": ALIAS, "name": "tiny", "pretrained": None, "weights_sha256": "0" * 64, "preprocessing": {},
    "dtype": "float32", "context_length": 77,
}  # fmt: skip

Floats = npt.NDArray[np.float32]


def vectors_of(shard: int, generation: int = 0, rows: int = SHARD_ROWS, dim: int = DIM) -> Floats:
    """The L2-normalized embeddings of a shard [rows, dim], which form groups. Every call returns the same values."""
    rng = np.random.default_rng([shard, generation])
    groups = np.random.default_rng(7).standard_normal((40, dim))
    made = groups[rng.integers(0, 40, rows)] + 0.5 * rng.standard_normal((rows, dim))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def is_missing(shard: int, rows: int = SHARD_ROWS) -> npt.NDArray[np.bool_]:
    """Whether each row lacks an embedding; one in ten does."""
    return np.random.default_rng([shard, 99]).random(rows) < 0.1


def make_dataset(folder: Path, shards: int, shard_rows: int = SHARD_ROWS, dim: int = DIM) -> Path:
    """Write a dataset with this many shards. Existing shards stay unchanged."""
    write_dataset(folder, shards * shard_rows, shard_rows=shard_rows)
    columns = folder / f"columns/{ALIAS}"
    (columns / "manifests").mkdir(parents=True, exist_ok=True)
    (columns / "model.json").write_text("{}")
    for shard in range(shards):
        if not (columns / f"manifests/{shard:09d}.json").exists():
            add_embeddings(folder, shard, 0, vectors_of(shard, 0, shard_rows, dim))
    return folder


def add_embeddings(folder: Path, shard: int, generation: int, vectors: Floats) -> None:
    """Write the columns of the model for one generation of a shard."""
    manifest = read_manifest(folder, shard, generation)
    row_ids = pq.ParquetFile(folder / manifest.files["pairs"].path).read(columns=["row_id"])["row_id"]
    column = float16_column(vectors, ~is_missing(shard, len(vectors)))
    names = ("row_id", f"similarity_{ALIAS}", f"image_embedding_{ALIAS}", f"text_embedding_{ALIAS}")
    table = pa.table(dict(zip(names, (row_ids, np.zeros(len(vectors), np.float32), column, column), strict=True)))
    path = f"columns/{ALIAS}/{shard:09d}.g{generation}.parquet"
    footer = {b"pairmill": json.dumps({"models": [CONTRACT]}).encode()}
    pq.write_table(table.replace_schema_metadata(footer), folder / path)
    data = (folder / path).read_bytes()
    record = ColumnsManifest(
        shard=shard, generation=generation, pairs_blake2b=manifest.files["pairs"].blake2b, rows=len(vectors),
        file=DataFile(path=path, num_bytes=len(data), blake2b=hashlib.blake2b(data, digest_size=16).hexdigest()),
        job_fingerprint="0" * 32,
    )  # fmt: skip
    (folder / f"columns/{ALIAS}/manifests/{manifest.name}").write_text(record.model_dump_json())


def retry(folder: Path, shard: int, rows: int = SHARD_ROWS + 7) -> None:
    """Write a new generation of a shard, with more rows and different embeddings."""
    old = read_manifest(folder, shard, committed(Store(str(folder)))[shard])
    table = pq.ParquetFile(folder / old.files["pairs"].path).read()
    table = pa.concat_tables([table, table.slice(0, rows - table.num_rows)])
    generation = old.generation + 1
    path = f"pairs/{shard:09d}.g{generation}.parquet"
    pq.write_table(table, folder / path)
    data = (folder / path).read_bytes()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    new = old.model_copy(update={
        "generation": generation, "pairs": rows, "rows_in": rows,
        "files": {"pairs": DataFile(path=path, num_bytes=len(data), blake2b=digest)},
    })  # fmt: skip
    (folder / f"manifests/{new.name}").write_text(new.model_dump_json())
    add_embeddings(folder, shard, generation, vectors_of(shard, generation, rows))


def read_manifest(folder: Path, shard: int, generation: int) -> ShardManifest:
    return ShardManifest.model_validate_json((folder / f"manifests/{manifest_name(shard, generation)}").read_bytes())


def snapshot(folder: Path) -> Snapshot:
    return Snapshot.of(Store(str(folder)))


def brute_force(folder: Path, queries: Floats, k: int, allowed: npt.NDArray[np.bool_] | None = None) -> list[list[int]]:
    """The row indices of the k nearest rows, computed in NumPy from the stored float16 values."""
    opened = snapshot(folder)
    parts = []
    for shard, generation in opened.generations:
        rows = read_manifest(folder, shard, generation).pairs
        vectors = vectors_of(shard, generation, rows).astype(np.float16).astype(np.float64)
        vectors[is_missing(shard, rows)] = np.nan
        parts.append(vectors)
    scores = queries.astype(np.float64) @ np.concatenate(parts).T  # [n, rows]
    scores[np.isnan(scores)] = -np.inf
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return [[int(row) for row in np.argsort(-each, kind="stable")[:k] if each[row] > -np.inf] for each in scores]
