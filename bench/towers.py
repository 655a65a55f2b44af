"""Compares embedding on the CPU with the model alone.

    python -m bench.towers [--rows 320] [--rounds 5]

Both sides run the same ViT-B-32 with random weights, in float32, on all cores, in one process. `pairmill` runs a plain
loop over a shard's stages (read, load, encode, commit) on tars of 512 x 384 JPEGs. `model` is the upper limit: it runs
the two towers alone, on tensors in memory, on batches of the same captions, sorted and trimmed in the same way. The two
sides alternate after every shard of 80 pairs, each being first every other time, so that a machine whose speed changes
within seconds slows down both alike. A round's ratio is that of their times over `--rows` pairs. With `--padding`, each
round also measures how much longer the text tower takes on padded captions.
"""

import argparse
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.embed import BATCH_SIZE, TAR_ROWS, open_build, save_weights, write_tars
from pairmill.pipeline.encode.clip_model import ClipModel, load_model
from pairmill.pipeline.stages.pipelines import process_shard
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig

PIXELS = torch.randn(BATCH_SIZE, 3, 224, 224)


@dataclass(frozen=True)
class Tokens:
    """The batches of one shard, int64 [batch, tokens]. As in pairmill, a shard's captions are sorted by length."""

    padded: list[torch.Tensor]
    trimmed: list[torch.Tensor]


def tokens(model: ClipModel, path: str) -> Tokens:
    """Tokenize the captions of a tar."""
    with tarfile.open(path) as tar:
        captions = [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]  # type: ignore[union-attr]
    found = model._tokenizer(captions)
    lengths = model._text.lengths(found)
    parts = torch.split(lengths.argsort(), BATCH_SIZE)
    return Tokens([found[part] for part in parts], [found[part][:, : int(lengths[part].max())] for part in parts])


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        work()
    return time.perf_counter() - started


def encode(model: ClipModel, shard: Tokens) -> None:
    """Run both towers on one shard."""
    for batch in shard.trimmed:
        model._model.encode_image(PIXELS[: len(batch)])
        model._text(batch)


def padding(model: ClipModel, shard: Tokens) -> float:
    """How many times as long the text tower takes on padded captions."""
    trimmed_s = seconds(lambda: [model._text(batch) for batch in shard.trimmed])
    return seconds(lambda: [model._model.encode_text(batch) for batch in shard.padded]) / trimmed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320, help="pairs per round, rounded down to whole shards")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--padding", action="store_true", help="measure the text tower on padded captions")
    options = parser.parse_args()
    per_round = options.rows // TAR_ROWS
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tars", "model"):
            Path(folder, name).mkdir()
        tars = write_tars(Path(folder, "tars"), (1 + options.rounds * per_round) * TAR_ROWS)
        weights, _ = save_weights(Path(folder, "model"))
        torch.set_num_threads(os.cpu_count() or 1)
        model = load_model(ModelConfig(name=weights, alias="m"), RunConfig(device="cpu", batch_size=BATCH_SIZE))
        captions = [tokens(model, path) for path in tars]
        shards, stages = open_build(tars, weights, f"{folder}/out")
        sides: dict[str, Callable[[int], object]] = {
            "model": lambda n: encode(model, captions[n]),
            "pairmill": lambda n: process_shard(shards[n], stages),
        }
        for work in sides.values():  # warm up
            work(0)
        ratios, paddings = [], []
        for number in range(options.rounds):
            spent = dict.fromkeys(sides, 0.0)
            for n in range(1 + number * per_round, 1 + (number + 1) * per_round):
                for name, work in sides.items() if n % 2 else reversed(sides.items()):
                    spent[name] += seconds(partial(work, n))
            ratios.append(spent["model"] / spent["pairmill"])
            if options.padding:
                paddings.append(padding(model, captions[number]))
            rates = {name: round(per_round * TAR_ROWS / each, 1) for name, each in spent.items()}
            print(number + 1, rates, "pairs/s", flush=True)
        for _, stage in stages:
            stage.close()
    print_median("pairmill / model", ratios)
    if options.padding:
        print_median("text tower, padded / trimmed", paddings)


def print_median(label: str, ratios: list[float]) -> None:
    print(f"{label}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
