"""Measures `pairmill index` and `pairmill search` on a dataset of a million rows, and compares them with brute force.

    python -m bench.search_index --rows 1000000 [--folder FOLDER]

The embeddings are those of `bench.search`. Prints the CPU time and memory of indexing, the size of the index, and the
time to open it. Then prints the time and recall of one search, for changed pictures and for captions, in the whole
dataset and in a tenth of it, and the time of the whole command `pairmill search --uid`.
"""

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.search import NEAREST, make
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.dataset.parquet import write_table
from pairmill.pipeline.encode.embedding_columns import float16_column
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.search.index import SearchIndex
from pairmill.schemas.manifest import ColumnsManifest, DataFile
from tests.synthetic_dataset import write_dataset

ALIAS = "clip"


def add_columns(folder: Path, vectors: npt.NDArray[np.float16]) -> None:
    """Write the embeddings as those of an added model."""
    (folder / f"columns/{ALIAS}/manifests").mkdir(parents=True, exist_ok=True)
    (folder / f"columns/{ALIAS}/model.json").write_text("{}")
    start = 0
    for manifest in read_manifests(Store(str(folder))):
        some = vectors[start : start + manifest.pairs]
        start += manifest.pairs
        column = float16_column(some.astype(np.float32), np.ones(len(some), np.bool_))
        missing = pa.nulls(len(some), column.type)
        columns = {f"image_embedding_{ALIAS}": column, f"text_embedding_{ALIAS}": missing}
        path = f"columns/{ALIAS}/{manifest.name.removesuffix('.json')}.parquet"
        with (folder / path).open("wb") as file:
            write_table(pa.table(columns), file)
        data = (folder / path).read_bytes()
        record = ColumnsManifest(
            shard=manifest.shard,
            generation=0,
            pairs_blake2b=manifest.files["pairs"].blake2b,
            rows=len(some),
            file=DataFile(path=path, num_bytes=len(data), blake2b=hashlib.blake2b(data, digest_size=16).hexdigest()),
            job_fingerprint="0" * 32,
        )
        (folder / f"columns/{ALIAS}/manifests/{manifest.name}").write_text(record.model_dump_json())


def run(*arguments: str) -> tuple[float, float, str]:
    """Run a pairmill command. Returns the seconds, the CPU seconds and the output."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "pairmill", *arguments], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu_s, done.stdout


def measure(index: SearchIndex, queries: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]) -> dict[str, float]:
    """Search for one query at a time. Returns the milliseconds per search and the recall."""
    times, hits = [], 0
    for query, best in zip(queries, truth, strict=True):
        started = time.perf_counter()
        rows, _ = index.search(query[None], NEAREST)
        times.append(1e3 * (time.perf_counter() - started))
        hits += len(set(rows[0].tolist()) & set(best.tolist()))
    return {
        "ms": round(statistics.median(times), 1),
        "ms_p95": round(float(np.percentile(times, 95)), 1),
        "recall": round(hits / truth.size, 4),
    }


def in_a_tenth(index: SearchIndex, queries: npt.NDArray[np.float32]) -> dict[str, float]:
    """Like `measure`, but among a random tenth of the rows. Recall is computed from the scores of brute force."""
    allowed = np.random.default_rng(1).random(index.num_rows) < 0.1
    times, hits = [], 0
    everything = np.concatenate([index.embeddings.read(shard)[0] for shard in index.embeddings.snapshot.chunk.shards])
    few, rows_of_few = everything[allowed].astype(np.float32), np.flatnonzero(allowed)
    for query in queries[:50]:
        started = time.perf_counter()
        rows, _ = index.search(query[None], NEAREST, allowed)
        times.append(1e3 * (time.perf_counter() - started))
        best = rows_of_few[np.argsort(-(few @ query))[:NEAREST]]
        hits += len(set(rows[0].tolist()) & set(best.tolist()))
    return {"ms": round(statistics.median(times), 1), "recall": round(hits / (50 * NEAREST), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-search-") as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "truth.npy").exists():
            make(folder, arguments.rows)
        dataset = folder / "dataset"
        if not (dataset / "columns").exists():
            write_dataset(dataset, arguments.rows)
            add_columns(dataset, np.load(folder / "vectors.npy", mmap_mode="r"))
        seconds, cpu_s, _ = run("index", str(dataset), "--model", ALIAS)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        print(json.dumps({"index_s": round(seconds, 1), "index_cpu_s": round(cpu_s, 1), "peak_mb": round(peak)}))
        num_bytes = sum(path.stat().st_size for path in dataset.rglob("*.faiss"))
        store = Store(str(dataset))
        started = time.perf_counter()
        snapshot = Snapshot.of(store)
        _ = snapshot.chunk
        manifests_s = time.perf_counter() - started
        index = SearchIndex.open(store, snapshot, ALIAS)
        opened_s = time.perf_counter() - started - manifests_s
        sizes = {"bytes_per_row": round(num_bytes / index.num_rows), "manifests_s": round(manifests_s, 2)}
        print(json.dumps({**sizes, "open_ms": round(1e3 * opened_s, 1)}))
        queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
        for name, of_kind, best in zip(("pictures", "captions"), queries, truth, strict=True):
            index.search(of_kind, NEAREST)  # so that the pages are in memory
            print(json.dumps({"queries": name, **measure(index, of_kind, best)}))
        print(json.dumps({"queries": "captions, in a tenth of the rows", **in_a_tenth(index, queries[1])}))
        uid = snapshot.read(snapshot.chunk.shards[0], ["uid"])["uid"][0].as_py()
        for attempt in ("first", "second"):
            seconds, cpu_s, _ = run("search", str(dataset), "--model", ALIAS, "--uid", uid)
            print(json.dumps({"command": attempt, "s": round(seconds, 2), "cpu_s": round(cpu_s, 2)}))


if __name__ == "__main__":
    main()
