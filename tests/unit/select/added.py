"""Writes the columns of an added model, as `embed --add-model` does."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.columns.added_model import AddedModel
from pairmill.pipeline.dataset.manifests import record_bytes
from pairmill.schemas.manifest import ColumnsManifest, DataFile, ShardManifest


def add_columns(dataset: Path, alias: str, shards: Iterable[int]) -> None:
    """Write `similarity_ALIAS` for the given shards."""
    (dataset / f"columns/{alias}/manifests").mkdir(parents=True, exist_ok=True)
    card = AddedModel(name="ViT-B-16", pretrained="openai", alias=alias, fingerprint="f" * 32)
    (dataset / f"columns/{alias}/model.json").write_bytes(record_bytes(card))
    footer = json.dumps({"models": [{"name": card.name, "pretrained": card.pretrained, "dtype": "float32"}]})
    for shard in shards:
        manifest = ShardManifest.model_validate_json((dataset / f"manifests/{shard:09d}.json").read_bytes())
        row_ids = pq.ParquetFile(dataset / manifest.files["pairs"].path).read(columns=["row_id"])["row_id"]
        scores = np.random.default_rng(shard).random(len(row_ids)).astype(np.float32)
        path = f"columns/{alias}/{shard:09d}.parquet"
        table = pa.table({"row_id": row_ids, f"similarity_{alias}": scores})
        pq.write_table(table.replace_schema_metadata({"pairmill": footer}), dataset / path)
        data = (dataset / path).read_bytes()
        record = ColumnsManifest(
            shard=shard,
            generation=0,
            pairs_blake2b=manifest.files["pairs"].blake2b,
            rows=len(row_ids),
            file=DataFile(path=path, num_bytes=len(data), blake2b=hashlib.blake2b(data, digest_size=16).hexdigest()),
            job_fingerprint=card.fingerprint,
        )
        (dataset / f"columns/{alias}/manifests/{manifest.name}").write_bytes(record_bytes(record))
