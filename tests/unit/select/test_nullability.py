"""Tests datasets whose shards differ in what may be null, because versions of pairmill differ."""

import json
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import pairmill
from pairmill.pipeline.feed.config import FeedConfig
from pairmill.pipeline.feed.pair_dataset import PairDataset
from tests.committed_shards import pair, write_dataset


def test_shards_that_differ_in_what_may_be_null_are_read_selected_and_exported_together(tmp_path: Path) -> None:
    root, columns = tmp_path / "out", ["uid", "status", "similarity", "image_embedding_tiny"]
    embedding = {"image_embedding_tiny": [1.0, 0.0], "text_embedding_tiny": [0.0, 1.0]}
    write_dataset(root, [[pair(f"{shard} {row}", 0.3, **embedding) for row in range(3)] for shard in range(2)])
    before = pairmill.open(root).table(columns)
    _allow_nulls(root, "000000000")
    assert pairmill.open(root).table(columns).equals(before)
    pairmill.select(root, "all", steps=["where: similarity > 0.2"])
    for form in ("parquet", "clip-retrieval", "datacomp"):
        assert pairmill.export(root, "all", tmp_path / form, format=form).record.rows == 6
    batches = list(PairDataset(FeedConfig(root, "all", columns, batch_size=4)))
    assert sorted(uid for batch in batches for uid in batch["uid"]) == sorted(before["uid"].to_pylist())


def _allow_nulls(root: Path, name: str) -> None:
    """Write a shard's pairs again, in a file that says that every value can be null."""
    path, manifest = root / f"pairs/{name}.parquet", root / f"manifests/{name}.json"
    table = pq.read_table(path)
    kinds = [pa.list_(field.type.value_type, 2) if pa.types.is_fixed_size_list(field.type) else field.type
             for field in table.schema]  # fmt: skip
    fields = [pa.field(field.name, kind) for field, kind in zip(table.schema, kinds, strict=True)]
    pq.write_table(table.cast(pa.schema(fields, table.schema.metadata)), path)
    record = json.loads(manifest.read_bytes())
    record["files"]["pairs"]["blake2b"] = blake2b(path.read_bytes(), digest_size=16).hexdigest()
    record["files"]["pairs"]["num_bytes"] = path.stat().st_size
    manifest.write_text(json.dumps(record))
