"""Commits small shards by hand: pictures, scores and rejects, without a server or a model."""

from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from pairmill.jobs.yaml_loader import dump_yaml
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import ShardWriter
from pairmill.pipeline.encode.tiny.draw import random_scene, render
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.planned import PlannedInput, to_bytes
from pairmill.schemas.batch import BatchInfo, ScoreContract, ShardBatch
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import Shard
from pairmill.schemas.pairs import in_flight_schema, score_columns
from pairmill.schemas.record import JobRecord
from pairmill.schemas.status import Step

NO_EXTRA = pa.schema([])
CONTRACT = ScoreContract("tiny", "tiny", None, "0" * 64, {}, "float32", 16)


def pair(caption: str, similarity: float | None = None, **columns: Any) -> dict[str, object]:
    """A row whose picture was decoded. `size`: the size of the picture."""
    return {"caption": caption, "similarity_tiny": similarity, "is_pair": True, "status": "ok", **columns}


def reject(caption: str, status: str = "http_4xx", **columns: Any) -> dict[str, object]:
    """A row that was rejected before it was scored."""
    return {"caption": caption, "is_pair": False, "status": status, **columns}


def write_dataset(
    root: Path,
    shards: Sequence[Sequence[Mapping[str, Any]]],
    extra: pa.Schema = NO_EXTRA,
    has_scores: bool = True,
    rules: Mapping[str, Any] | None = None,
    pictures: str = "pairs",
    planned: int | None = None,
    contract: ScoreContract = CONTRACT,
    dim: int = 2,
) -> Store:
    """Plan and commit shards of rows made by `pair` and `reject`. `planned`: how many shards are planned.

    `contract`, `dim`: the score contract and embedding width of the model `tiny`.
    """
    store = Store(str(root))
    values = {
        "source": {"paths": ["in.parquet"]},
        "output": store.root,
        "images": {"store": pictures},
        "models": [{"name": "tiny"}] if has_scores else [],
        "rules": rules or {},
    }
    record = JobRecord(BuildJob.model_validate(values), "0" * 32)
    sizes = [len(rows) for rows in shards] + [1] * ((planned or len(shards)) - len(shards))
    plan = [Shard(number, "in.parquet", sum(sizes[:number]), size, "f") for number, size in enumerate(sizes)]
    mapping = ColumnMapping("url", "caption", None, None, None, extra, tuple(extra.names))
    table = pa.concat_tables([shard.to_table() for shard in plan])
    store.create("plan/0.parquet", to_bytes(table, mapping, [PlannedInput("in", "in", "f", sum(sizes))], record))
    store.create("job.yaml", dump_yaml(record.to_json()).encode())
    names = {each["status_detail"].partition(": ")[0] for rows in shards for each in rows if _is_custom(each)}
    aliases = ["tiny"] if has_scores else []
    writer = ShardWriter(
        store, extra, aliases, record.job.images, "0" * 32, {"pairmill": "1.2.3"}, dict.fromkeys(names, Step.SCORE)
    )
    schema = pa.schema([*in_flight_schema(extra), *(score_columns("tiny", dim) if has_scores else [])])
    for shard, rows in zip(plan, shards, strict=False):
        full = [_row(shard.shard, number, row) for number, row in enumerate(rows)]
        info = BatchInfo(shard, contracts=(contract,) if has_scores else ())
        writer.commit(ShardBatch(info, pa.Table.from_pylist(full, schema=schema)))
    return store


def _is_custom(row: Mapping[str, Any]) -> bool:
    return bool(row["status"] == "custom_rule")


def uid_of(shard: int, number: int) -> str:
    """The uid of a row."""
    return f"{Random(f'{shard} {number}').getrandbits(128):032x}"


def _row(shard: int, number: int, values: Mapping[str, Any]) -> dict[str, object]:
    size = values.get("size", (24, 16))
    return {
        "row_id": f"{shard}:{number}",
        "uid": uid_of(shard, number),
        "url": f"http://host{number % 3}/{number}.jpg",
        "caption_clean": values["caption"],
        "caption_index": 0,
        "image": _picture(number, size) if values["is_pair"] and "image" not in values else None,
        "width": size[0],
        "height": size[1],
        **values,
    }


@cache
def _picture(number: int, size: tuple[int, int]) -> bytes:
    picture, rng = BytesIO(), Random(number)
    render(random_scene(rng), rng, *size).save(picture, "JPEG")
    return picture.getvalue()
