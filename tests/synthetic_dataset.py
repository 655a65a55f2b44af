"""Writes a finished dataset of generated metadata, of any size: the same files as a build, but without pictures.

One row in ten repeats the uid of an earlier row. One in five repeats the sha256 of an earlier row and has a phash that
differs from that row's in at most two bits.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairmill.jobs.yaml_loader import dump_yaml
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.parquet import write_table
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.planned import PlannedInput, to_bytes
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import DataFile, Shard, ShardManifest
from pairmill.schemas.pairs import pairs_schema
from pairmill.schemas.record import JobRecord

SHARD_ROWS = 4_096

U64 = npt.NDArray[np.uint64]
Columns = Callable[[int, int, int, int], dict[str, pa.Array]]
"""Returns the columns that are not all null, given a shard, its first row, its number of rows, and a seed."""


def write_dataset(
    folder: Path, num_rows: int, seed: int = 1, shard_rows: int = SHARD_ROWS, columns: Columns | None = None
) -> None:
    """Write the plan, pairs and manifests. Existing shards stay, so a second call with more rows adds shards."""
    make = columns or default_columns
    store = Store(str(folder))
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, num_rows, shard_rows)):
        shard = Shard(number, "in.parquet", start, min(shard_rows, num_rows - start), "blake2b:0:0")
        shards.append(shard)
        if not (folder / f"pairs/{number:09d}.parquet").exists():
            _write_shard(store, folder, shard, make(number, start, shard.num_rows, seed))
    write_plan(store, shards, num_rows)


def _write_shard(store: Store, folder: Path, shard: Shard, columns: dict[str, pa.Array]) -> None:
    path = folder / f"pairs/{shard.shard:09d}.parquet"
    schema = pairs_schema(pa.schema([]), [])
    for name in columns:
        schema = schema if name in schema.names else schema.append(pa.field(name, columns[name].type))
    arrays = [columns.get(field.name, pa.nulls(shard.num_rows, field.type)) for field in schema]
    with path.open("wb") as file:
        write_table(pa.Table.from_arrays(arrays, schema=schema), file)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    statuses = {item["values"].as_py(): item["counts"].as_py() for item in pc.value_counts(columns["status"])}
    manifest = ShardManifest(
        shard=shard.shard,
        attempt=f"{shard.shard:032x}",
        uri=shard.uri,
        first_row=shard.first_row,
        num_rows=shard.num_rows,
        rows_in=shard.num_rows,
        pairs=shard.num_rows,
        rejects=0,
        kept=statuses.get("ok", 0),
        statuses=statuses,
        job_fingerprint="0" * 32,
        files={"pairs": DataFile(path=f"pairs/{path.name}", num_bytes=path.stat().st_size, blake2b=digest)},
        seconds={},
        bytes_fetched=0,
        versions={},
    )
    store.create(f"manifests/{manifest.name}", manifest.model_dump_json().encode())


def write_plan(store: Store, shards: list[Shard], num_rows: int, pictures: str = "none") -> None:
    """Plan the shards that no earlier call planned. `pictures`: the job's images.store."""
    plans = store.list("plan")
    num_planned = sum(pq.read_metadata(store.path(f"plan/{name}")).num_rows for name in plans)
    if num_planned == len(shards):
        return
    table = pa.concat_tables([shard.to_table() for shard in shards[num_planned:]])
    mapping = ColumnMapping("url", "caption", None, None, None, pa.schema([]), ())
    inputs = [] if plans else [PlannedInput("in.parquet", "in.parquet", "blake2b:0:0", num_rows)]
    values = {"source": {"paths": ["in.parquet"]}, "output": store.root, "images": {"store": pictures, "md5": True}}
    record = JobRecord(BuildJob.model_validate(values), "0" * 32)
    store.create(f"plan/{len(plans)}.parquet", to_bytes(table, mapping, inputs, record))
    store.create("job.yaml", dump_yaml(record.to_json()).encode())


def default_columns(shard: int, first: int, rows: int, seed: int) -> dict[str, pa.Array]:
    """The columns of one shard that are not all null."""
    rng = np.random.default_rng([seed, shard])
    own = np.arange(first, first + rows)

    def repeating(share: float) -> U64:
        """Row numbers, in which a share of the rows have the number of an earlier row instead of their own."""
        return np.where(rng.random(rows) < share, rng.integers(0, first + rows, rows), own).astype(np.uint64)

    uid, sha256 = repeating(0.1), repeating(0.2)
    phash = _scrambled(sha256) ^ np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (2, rows), dtype=np.uint64))
    number = pc.cast(pa.array(own), pa.string())
    status = pa.array(np.where(rng.random(rows) < 0.05, "similarity_too_low", "ok"))
    return {
        "row_id": pc.binary_join_element_wise(f"{shard:09d}", number, ":"),
        "uid": hex_digits(np.stack([_scrambled(uid), _scrambled(uid + np.uint64(1 << 60))], axis=1)),
        "url": pc.binary_join_element_wise("https://pictures.example/albums/", number, ".jpg", ""),
        "caption": pc.binary_join_element_wise("the photograph with number", number, " "),
        "status": status,
        "kept": pc.equal(status, "ok"),
        "similarity": pa.array(rng.normal(0.25, 0.05, rows).astype(np.float32), mask=rng.random(rows) < 0.001),
        "sha256": hex_digits(np.stack([_scrambled(sha256 + np.uint64(n << 50)) for n in range(4)], axis=1)),
        "phash": hex_digits(phash[:, None]),
        "width": pa.array(rng.integers(100, 1_000, rows), pa.int32()),
        "height": pa.array(rng.integers(100, 1_000, rows), pa.int32()),
    }


def hex_digits(words: U64) -> pa.Array:
    """(rows, words) of uint64 as strings of 16 hex digits per word."""
    raw = np.ascontiguousarray(words.astype(">u8")).view(np.uint8).reshape(len(words), -1)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.stack([digits[raw >> 4], digits[raw & 15]], axis=2).reshape(len(words), -1)
    offsets = np.arange(len(words) + 1, dtype=np.int32) * text.shape[1]
    return pa.Array.from_buffers(
        pa.string(), len(words), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text))]
    )


def _scrambled(numbers: U64) -> U64:
    """A pseudorandom value computed from each number, with the multiplier of Knuth's MMIX generator."""
    numbers = (numbers + np.uint64(1)) * np.uint64(6364136223846793005)
    return (numbers ^ (numbers >> np.uint64(29))) * np.uint64(6364136223846793005)
