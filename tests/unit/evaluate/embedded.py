"""Writes a finished dataset with given embeddings, in shards of any size."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.jobs.yaml_loader import dump_yaml
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import ShardWriter
from pairmill.pipeline.encode.embedding_columns import float16_column
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.planned import PlannedInput, to_bytes
from pairmill.schemas.batch import BatchInfo, ScoreContract, ShardBatch
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import Shard
from pairmill.schemas.pairs import in_flight_schema, score_columns
from pairmill.schemas.record import JobRecord

ALIAS = "clip_b32"
CONTRACT = ScoreContract(ALIAS, "ViT-B-32", "openai", "0" * 64, {}, "float32", 77)
NO_EXTRA = pa.schema([])

Floats = npt.NDArray[Any]


def uid_of(row: int) -> str:
    """The uid of a row, which does not depend on the shard size."""
    return hashlib.blake2b(b"%d" % row, digest_size=16).hexdigest()


def write_embedded(
    root: Path,
    images: Floats,
    texts: Floats | None = None,
    shard_rows: int = 1_000,
    columns: Mapping[str, Sequence[Any]] | None = None,
    extra: pa.Schema = NO_EXTRA,
) -> Store:
    """Write a dataset with these embeddings [rows, dim]; an embedding that contains NaN becomes null.

    `columns`: values of other columns of the schema or of `extra`.
    """
    store, dim, texts = Store(str(root)), images.shape[1], images if texts is None else texts
    values = {
        "source": {"paths": ["in.parquet"]},
        "output": store.root,
        "images": {"store": "none"},
        "models": [{"name": "ViT-B-32", "pretrained": "openai", "alias": ALIAS}],
    }
    record = JobRecord(BuildJob.model_validate(values), "0" * 32)
    starts = range(0, len(images), shard_rows)
    shards = [Shard(n, "in", start, min(shard_rows, len(images) - start), "f") for n, start in enumerate(starts)]
    mapping = ColumnMapping("url", "caption", None, None, None, extra, tuple(extra.names))
    plan = pa.concat_tables([shard.to_table() for shard in shards])
    store.create("plan/0.parquet", to_bytes(plan, mapping, [PlannedInput("in", "in", "f", len(images))], record))
    store.create("job.yaml", dump_yaml(record.to_json()).encode())
    writer = ShardWriter(store, extra, [ALIAS], record.job.images, "0" * 32, {"pairmill": "1.2.3"})
    schema = pa.schema([*in_flight_schema(extra), *score_columns(ALIAS, dim)])
    for shard in shards:
        rows = slice(shard.first_row, shard.first_row + shard.num_rows)
        numbers = range(rows.start, rows.stop)
        made: dict[str, object] = {
            "row_id": [f"{shard.shard}:{n - rows.start}" for n in numbers],
            "uid": [uid_of(n) for n in numbers],
            "url": [f"http://host/{n}.jpg" for n in numbers],
            "caption": [f"caption {n}" for n in numbers],
            "status": ["ok"] * shard.num_rows,
            "is_pair": [True] * shard.num_rows,
            **{name: each[rows] for name, each in (columns or {}).items()},
            f"image_embedding_{ALIAS}": _vectors(images[rows]),
            f"text_embedding_{ALIAS}": _vectors(texts[rows]),
        }
        arrays = [_array(made.get(field.name), field, shard.num_rows) for field in schema]
        table = pa.Table.from_arrays(arrays, schema=schema)
        writer.commit(ShardBatch(BatchInfo(shard, contracts=(CONTRACT,)), table))
    return store


def write_labels(path: Path, labels: Mapping[int, Any] | Sequence[tuple[str, Any]]) -> Path:
    """Write a Parquet file with the columns uid and label, from labels by row number or from (uid, label) pairs."""
    pairs = [(uid_of(row), label) for row, label in labels.items()] if isinstance(labels, Mapping) else list(labels)
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"uid": [uid for uid, _ in pairs], "label": [label for _, label in pairs]}), path)
    return path


def unit(vectors: Floats) -> Floats:
    """L2-normalized rows."""
    made: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return made


def _vectors(vectors: Floats) -> pa.Array:
    return float16_column(vectors.astype(np.float32), ~np.isnan(vectors).any(axis=1))


def _array(values: Any, field: pa.Field, rows: int) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    return pa.nulls(rows, field.type) if values is None else pa.array(values, field.type)
