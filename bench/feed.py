"""Compares PairDataset with webdataset on the same pictures, and measures how fast PairDataset reads embeddings alone.

    python -m bench.feed [--rows 2000] [--rounds 5]

Pictures: 512 x 384 JPEGs in tars, embedded by `tiny` and exported as tars. Both sides decode, resize to 224 with
open_clip's evaluation transform, and make batches of 64, without workers and with two workers; the higher rate counts.
The two sides alternate, and the ratio is the median over the rounds. Embeddings: 64 shards of 4,096 rows with two
512-dimensional float16 vectors each, in batches of 1,024, for four epochs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from torch.utils.data import DataLoader

from bench.embed import write_tars
from pairmill.jobs.build import build
from pairmill.jobs.export import export
from pairmill.jobs.select import select
from pairmill.pipeline.columns.added_model import AddedModel
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.parquet import write_table
from pairmill.pipeline.feed.config import FeedConfig
from pairmill.pipeline.feed.pair_dataset import PairDataset
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import ColumnsManifest, DataFile, ShardManifest
from pairmill.schemas.pairs import embedding_type, score_column_names
from pairmill.schemas.subset import SelectJob
from tests.synthetic_dataset import write_dataset

BATCH_SIZE, DIM = 64, 512
WORKERS = (0, 2)
EPOCHS = 4
"""Epochs over the embeddings: a million pairs in total, because one epoch takes only a second."""


def drain(batches: Any, size: Callable[[Any], int]) -> float:
    """Consume the batches. Returns rows per second."""
    started, rows = time.perf_counter(), 0
    for batch in batches:
        rows += size(batch)
    return rows / (time.perf_counter() - started)


def feed_rate(folder: str, workers: int) -> float:
    """Pictures per second of PairDataset. Workers have one thread each."""
    transform = open_clip.image_transform(224, is_train=False)
    config = FeedConfig(f"{folder}/out", "all", batch_size=BATCH_SIZE, threads=1 if workers else 2)
    loader = DataLoader(PairDataset(config, transform), batch_size=None, num_workers=workers)
    return drain(loader, lambda batch: len(batch["uid"]))


def webdataset_rate(folder: str, workers: int) -> float:
    """Pictures per second of webdataset on the exported tars."""
    transform = open_clip.image_transform(224, is_train=False)
    tars = sorted(str(path) for path in Path(folder, "tars").glob("*.tar"))
    pipeline = webdataset.WebDataset(tars, shardshuffle=False).decode("pilrgb").to_tuple("jpg", "txt")
    loader = DataLoader(pipeline.map_tuple(transform, str).batched(BATCH_SIZE), batch_size=None, num_workers=workers)
    return drain(loader, lambda batch: len(batch[1]))


def embeddings_rate(folder: str, workers: int) -> float:
    """Pairs per second of PairDataset without pictures."""
    names = score_column_names("clip")[1:]
    dataset = PairDataset(FeedConfig(f"{folder}/vectors", columns=names, batch_size=1_024))
    loader = DataLoader(dataset, batch_size=None, num_workers=workers) if workers else dataset
    epochs = (batch for _ in range(EPOCHS) for batch in loader)
    return drain(epochs, lambda batch: len(batch["uid"]))


SIDES = {"feed": feed_rate, "webdataset": webdataset_rate, "embeddings": embeddings_rate}


def make(folder: Path, rows: int) -> None:
    """Write the corpus, its embeddings and its tars."""
    (folder / "corpus").mkdir()
    write_tars(folder / "corpus", rows)
    source = {"paths": [f"{folder}/corpus"], "kind": "corpus"}
    job = {"source": source, "output": f"{folder}/out", "models": [{"name": "tiny"}], "shard_rows": 256}
    assert build(BuildJob.model_validate(job)).kept == rows
    select(SelectJob.model_validate({"dataset": f"{folder}/out", "name": "all"}))
    values = {"dataset": f"{folder}/out", "subset": "all", "output": f"{folder}/tars", "samples_per_file": 250}
    export(ExportJob.model_validate(values))


def write_embeddings(dataset: Path) -> None:
    """Write a dataset with two vectors per row, as the columns of an added model."""
    write_dataset(dataset, 64 * 4_096)
    (dataset / "columns/clip/manifests").mkdir(parents=True)
    card = AddedModel(name="ViT-B-32", pretrained="openai", alias="clip", fingerprint="f" * 32)
    (dataset / "columns/clip/model.json").write_text(card.model_dump_json())
    rng = np.random.default_rng(1)
    for record_path in sorted((dataset / "manifests").iterdir()):
        manifest = ShardManifest.model_validate_json(record_path.read_bytes())
        columns: dict[str, pa.Array | pa.ChunkedArray] = {
            "row_id": pq.read_table(dataset / manifest.files["pairs"].path)["row_id"]
        }
        for name in score_column_names("clip")[1:]:
            vectors = rng.normal(0, DIM**-0.5, (manifest.pairs, DIM)).astype(np.float16)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=embedding_type(DIM))
        path = f"columns/clip/{manifest.shard:09d}.parquet"
        with (dataset / path).open("wb") as file:
            write_table(pa.table(columns), file)
        digest, num_bytes = Store(str(dataset)).checksum(path)
        record = ColumnsManifest(
            shard=manifest.shard,
            generation=0,
            pairs_blake2b=manifest.files["pairs"].blake2b,
            rows=manifest.pairs,
            file=DataFile(path=path, num_bytes=num_bytes, blake2b=digest),
            job_fingerprint="",
        )
        (dataset / f"columns/clip/manifests/{manifest.name}").write_text(record.model_dump_json())


def measure(side: str, folder: Path) -> float:
    """The rate of the faster configuration. Each is measured in a separate process."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.feed", "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rates: list[float] = json.loads(done.stdout.splitlines()[-1])
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures-only", action="store_true", help="without the embeddings")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps([SIDES[options.side](options.folder, workers) for workers in WORKERS]))
        return
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), options.rows)
        if not options.pictures_only:
            write_embeddings(Path(name, "vectors"))
        sides = [side for side in SIDES if side != "embeddings" or not options.pictures_only]
        ratios = []
        print(f"{'round':<8}" + "".join(f"{side + ' rows/s':>22}" for side in sides))
        for number in range(options.rounds):
            rates = {side: measure(side, Path(name)) for side in sides}
            print(f"{number + 1:<8}" + "".join(f"{rate:>22,.0f}" for rate in rates.values()), flush=True)
            ratios.append(rates["feed"] / rates["webdataset"])
        print(f"feed / webdataset: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
