"""Measures how busy the encode stage keeps a simulated accelerator.

    python -m bench.accelerator ../shared/data/pairs [--rate 250] [--shards 6]

The accelerator embeds `--rate` pictures and eight times as many captions per second. Instead of running a model, the
calling thread releases the GIL and sleeps, as it would while waiting for a GPU. Everything else is the real stage:
payloads are unpacked as in an actor, pictures are decoded and resized, and columns are packed. On two cores, a rate of
250 simulates one GPU that embeds 2,000 pictures per second next to 16 cores.

Prints the fraction of the wall-clock time during which the accelerator was busy, for one shard and for several shards
at a time.
"""

import argparse
import hashlib
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import torch

from pairmill.jobs.cluster.arrow_ipc import pack, unpack
from pairmill.jobs.cluster.pools import ENCODE_CALLS
from pairmill.pipeline.encode.clip_model import load_model
from pairmill.pipeline.encode.encoder import Encoder
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.batch import BatchInfo, ShardBatch
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.manifest import Shard
from pairmill.schemas.pairs import in_flight_schema

CAPTIONS_PER_PICTURE = 8
"""The text tower takes about an eighth as long for a caption as the image tower takes for a picture."""
DIM = 512


class Accelerator(torch.nn.Module):
    """A stand-in for an open_clip model: takes a fixed time per input, and returns unit vectors."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.busy_s, self.started, self.ended = rate, 0.0, 0.0, 0.0
        self._alone = threading.Lock()

    def encode_image(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._work(len(inputs), self.rate)

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """The number of tokens of each caption, as in `TextTower`, which this class also replaces."""
        return torch.full((len(tokens),), tokens.shape[1])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._work(len(tokens), CAPTIONS_PER_PICTURE * self.rate)

    def _work(self, count: int, rate: float) -> torch.Tensor:
        with self._alone:
            started = time.perf_counter()
            time.sleep(count / rate)
            self.ended = time.perf_counter()
        self.started = self.started or started
        self.busy_s += self.ended - started
        return torch.ones(count, DIM)


def payloads(folder: Path, shards: int, shard_rows: int) -> list[pa.Buffer]:
    """Shards of photographs as a build stores them. Every row has a different digest."""
    processor = ImageProcessor(ImagesConfig())
    files = [json.loads(line)["file"] for line in (folder / "pairs.jsonl").read_text().splitlines()]
    processed = [processor.process((folder / name).read_bytes()) for name in files]
    images = [result for result in processed if result.image is not None]
    packed = []
    for shard in range(shards):
        rows = []
        for row in range(shard_rows):
            result, row_id = images[row % len(images)], f"{shard}:{row}"
            digest = hashlib.sha256(row_id.encode()).hexdigest()  # distinct, because equal pictures are encoded once
            rows.append(
                {"row_id": row_id, "uid": digest[:32], "status": "ok", "is_pair": True, "sha256": digest}
                | {"image": result.image, "phash": result.phash, "width": result.width, "height": result.height}
                | {"caption": f"photograph {row_id}", "caption_clean": f"photograph {row_id}"}
            )
        table = pa.Table.from_pylist(rows, schema=in_flight_schema(pa.schema([])))
        packed.append(pack(ShardBatch(BatchInfo(Shard(shard, "photographs", 0, shard_rows, "")), table)))
    return packed


def utilization(shards: Sequence[pa.Buffer], calls: int, options: argparse.Namespace) -> float:
    """Fraction of the time from the first batch to the last during which the accelerator was busy."""
    run, config = RunConfig(device="cpu", batch_size=options.batch_size), ModelConfig(name="tiny")
    encoder = Encoder([config], run, ImagesConfig())
    (model,) = encoder.models
    accelerator = Accelerator(options.rate)
    model.embedding_dim, model._model, model._text = DIM, accelerator, accelerator  # type: ignore[assignment]

    def encode(payload: pa.Buffer) -> int:
        batch = unpack(payload)
        return int(pack(batch.with_table(encoder(batch.table))).size)

    with ThreadPoolExecutor(calls) as pool:
        list(pool.map(encode, shards))
    encoder.close()
    load_model.cache_clear()
    return accelerator.busy_s / (accelerator.ended - accelerator.started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rate", type=float, default=250.0, help="pictures per second")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--shard-rows", type=int, default=1_024)
    options = parser.parse_args()
    shards = payloads(options.photos, options.shards, options.shard_rows)
    for calls in (1, ENCODE_CALLS):
        print(f"{calls} shard(s) at a time: busy {utilization(shards, calls, options):.3f} of the time", flush=True)


if __name__ == "__main__":
    main()
