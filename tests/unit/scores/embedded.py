"""Commits pairs with given embeddings, as a build with a single model does."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.jobs.score import ScoreResult, score
from pairmill.jobs.yaml_loader import dump_yaml
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import ShardWriter
from pairmill.pipeline.encode.embedding_columns import float16_column
from pairmill.pipeline.reader.dataset import Dataset
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.planned import PlannedInput, to_bytes
from pairmill.schemas.batch import BatchInfo, ScoreContract, ShardBatch
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import Shard, manifest_name
from pairmill.schemas.pairs import in_flight_schema, score_columns
from pairmill.schemas.record import JobRecord
from pairmill.schemas.scores import ScoreJob
from tests.committed_shards import uid_of

Floats = npt.NDArray[np.float32]

ALIAS = "b32"
B32 = ScoreContract(ALIAS, "ViT-B-32", "openai", "0" * 64, {}, "float32", 77)


def supersede(store: Store, shard: int) -> None:
    """Replace the first generation of a shard, as a retry beside another command does. Its data stay as they are."""
    old = f"manifests/{manifest_name(shard)}"
    newer = json.loads(store.read(old)) | {"generation": 1}
    assert store.create(f"manifests/{manifest_name(shard, 1)}", json.dumps(newer).encode())
    store.delete(old)


def unit_vectors(seed: int, rows: int, dim: int = 16) -> Floats:
    made = np.random.default_rng(seed).standard_normal((rows, dim))
    vectors: Floats = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return vectors


def write_embedded(
    folder: Path,
    images: Floats,
    texts: Floats,
    shard_rows: int = 50,
    contract: ScoreContract = B32,
    captions: Sequence[str] | None = None,
    planned_rows: int | None = None,
    missing: Sequence[int] = (),
    sha256: Sequence[str] | None = None,
) -> Store:
    """Plan `planned_rows` rows (None: all), and commit the rows of `images` that have not been committed yet.

    `missing`: rows without embeddings. `sha256`: checksums of the pictures; None: all distinct.
    """
    store, alias = Store(str(folder)), contract.alias
    total = planned_rows or len(images)
    shards = [
        Shard(number, "in.parquet", start, min(shard_rows, total - start), "f")
        for number, start in enumerate(range(0, total, shard_rows))
    ]
    model = {"name": contract.name, "pretrained": contract.pretrained, "alias": alias}
    job = {"source": {"paths": ["in.parquet"]}, "output": store.root, "models": [model], "images": {"store": "none"}}
    record = JobRecord(BuildJob.model_validate(job), "0" * 32)
    mapping = ColumnMapping("url", "caption", None, None, None, pa.schema([]), ())
    plan = pa.concat_tables([shard.to_table() for shard in shards])
    store.create("plan/0.parquet", to_bytes(plan, mapping, [PlannedInput("in", "in", "f", total)], record))
    store.create("job.yaml", dump_yaml(record.to_json()).encode())
    writer = ShardWriter(store, pa.schema([]), [alias], ImagesConfig(store="none"), "0" * 32, {})
    done = len(store.list("manifests"))
    for shard in shards[done:]:
        rows = range(shard.first_row, min(shard.first_row + shard.num_rows, len(images)))
        if len(rows) == shard.num_rows:
            is_valid = np.array([row not in missing for row in rows], bool)
            table = _table(shard, rows, captions, sha256)
            image, text = images[rows.start : rows.stop], texts[rows.start : rows.stop]
            similarity = pa.array((image * text).sum(axis=1), mask=~is_valid)
            made = (similarity, float16_column(image, is_valid), float16_column(text, is_valid))
            for field, column in zip(score_columns(alias, images.shape[1]), made, strict=True):
                table = table.append_column(field, column)
            writer.commit(ShardBatch(BatchInfo(shard, contracts=(contract,)), table))
    return store


def add(folder: Path, name: str, **kind: object) -> ScoreResult:
    return score(ScoreJob.model_validate({"dataset": str(folder), "name": name, **kind}))


def column(folder: Path, name: str) -> npt.NDArray[np.float64]:
    """The values of a column in row order; NaN for null."""
    values: npt.NDArray[np.float64] = Dataset.of(Store(str(folder))).table([name])[name].to_numpy().astype(np.float64)
    return values


def stored(vectors: Floats) -> npt.NDArray[np.float64]:
    """The embeddings as a score sees them: rounded to float16, then normalized again."""
    rounded = vectors.astype(np.float16).astype(np.float64)
    normalized: npt.NDArray[np.float64] = rounded / np.linalg.norm(rounded, axis=1, keepdims=True)
    return normalized


def _table(shard: Shard, rows: range, captions: Sequence[str] | None, sha256: Sequence[str] | None) -> pa.Table:
    values = [
        {
            "row_id": f"{shard.shard}:{number}",
            "uid": uid_of(0, row),
            "url": f"http://x.invalid/{row}",
            "caption": captions[row] if captions else f"caption {row}",
            "caption_clean": captions[row] if captions else f"caption {row}",
            "status": "ok",
            "is_pair": True,
            "sha256": sha256[row] if sha256 else f"{row:064x}",
        }
        for number, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(values, schema=in_flight_schema(pa.schema([])))
