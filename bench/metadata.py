"""A dataset of made-up metadata, as large as wanted: real files of a finished build, without pictures.

    python -m bench.metadata OUT --rows 10000000 --seed 1

One row in ten repeats the uid of an earlier one, one in five its sha256 and, but for two bits or fewer, its phash.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.planned import PlannedInput, to_bytes
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import DataFile, Shard, ShardManifest
from pairmill.schemas.pairs import pairs_schema
from pairmill.schemas.record import JobRecord

SHARD_ROWS = 4_096


def hex_digits(numbers: Any) -> pa.Array:
    """(rows, words) of uint64 -> 16 hex digits per word."""
    raw = np.ascontiguousarray(numbers.astype(">u8")).view(np.uint8).reshape(len(numbers), -1)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.stack([digits[raw >> 4], digits[raw & 15]], axis=2).reshape(len(numbers), -1)
    width = text.shape[1]
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * width
    return pa.Array.from_buffers(
        pa.string(), len(numbers), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text))]
    )


def columns(shard: int, first: int, rows: int, seed: int) -> dict[str, pa.Array]:
    """The columns that are not null."""
    rng = np.random.default_rng([seed, shard])
    own = np.arange(first, first + rows)

    def of(part: float) -> Any:
        """The row itself, or for a part of the rows an earlier one."""
        return np.where(rng.random(rows) < part, rng.integers(0, first + rows, rows), own).astype(np.uint64)

    uid, sha256 = of(0.1), of(0.2)
    phash = _mixed(sha256) ^ np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (2, rows), dtype=np.uint64))
    number = pc.cast(pa.array(own), pa.string())
    return {
        "row_id": pc.binary_join_element_wise(f"{shard:09d}", number, ":"),
        "uid": hex_digits(np.stack([_mixed(uid), _mixed(uid + np.uint64(1 << 60))], axis=1)),
        "url": pc.binary_join_element_wise("https://pictures.example/albums/", number, ".jpg", ""),
        "caption": pc.binary_join_element_wise("the photograph with number", number, " "),
        "status": pa.array(np.where(rng.random(rows) < 0.05, "similarity_too_low", "ok")),
        "similarity": pa.array(rng.normal(0.25, 0.05, rows).astype(np.float32), mask=rng.random(rows) < 0.001),
        "sha256": hex_digits(np.stack([_mixed(sha256 + np.uint64(n << 50)) for n in range(4)], axis=1)),
        "phash": hex_digits(phash[:, None]),
        "width": pa.array(rng.integers(100, 1_000, rows), pa.int32()),
        "height": pa.array(rng.integers(100, 1_000, rows), pa.int32()),
    }


def _mixed(numbers: Any) -> Any:
    """Any well mixed bits: the multiplier is Knuth's of MMIX."""
    numbers = (numbers + np.uint64(1)) * np.uint64(6364136223846793005)
    return (numbers ^ (numbers >> np.uint64(29))) * np.uint64(6364136223846793005)


def write_dataset(folder: Path, num_rows: int, seed: int = 1, shard_rows: int = SHARD_ROWS) -> None:
    """Plan, pairs and manifests. Shards that are there already stay as they are: more rows may be asked for later."""
    store, schema, shards = Store(str(folder)), pairs_schema(pa.schema([]), []), []
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, num_rows, shard_rows)):
        rows = min(shard_rows, num_rows - start)
        shards.append(Shard(number, "in.parquet", start, rows, "blake2b:0:0"))
        path = folder / f"pairs/{number:09d}.parquet"
        if path.exists():
            continue
        data = columns(number, start, rows, seed)
        data["kept"] = pc.equal(data["status"], "ok")
        arrays = [data.get(field.name, pa.nulls(rows, field.type)) for field in schema]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, row_group_size=1_024, compression="zstd")
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        statuses = {item["values"].as_py(): item["counts"].as_py() for item in pc.value_counts(data["status"])}
        manifest = ShardManifest(
            shard=number,
            attempt=f"{number:032x}",
            uri="in.parquet",
            first_row=start,
            num_rows=rows,
            rows_in=rows,
            pairs=rows,
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
    facts = ColumnMapping("url", "caption", None, None, None, pa.schema([]), ())
    table = pa.concat_tables([shard.to_table() for shard in shards])
    planned = store.list("plan")
    if planned:
        done = sum(pq.read_metadata(folder / "plan" / name).num_rows for name in planned)
        table = table.slice(done)
    if table.num_rows:
        inputs = [PlannedInput("in.parquet", "in.parquet", "blake2b:0:0", num_rows)] if not planned else []
        values = {"source": {"paths": ["in.parquet"]}, "output": str(folder), "images": {"store": "none"}}
        record = JobRecord(BuildJob.model_validate(values), "0" * 32)
        store.create(f"plan/{len(planned)}.parquet", to_bytes(table, facts, inputs, record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_dataset(options.out, options.rows, options.seed)


if __name__ == "__main__":
    main()
