"""Compares pairmill's speed at embedding tars on the CPU with the speeds of the model alone and of clip-retrieval.

    make bench-peers && .venv/bin/python -m bench.embed --rows 960 --rounds 5

All sides run a ViT-B-32 with random weights, in float32, on all cores. `forward` is the upper limit: it runs the two
towers alone, on tensors in memory, on batches of the same captions as pairmill, trimmed in the same way. `pairmill`
runs a plain loop over a shard's stages (read, load, encode, commit) on tars of 512 px JPEGs. `clip-retrieval` runs its
own reader, mapper and writer on the same tars and weights, in the faster of two configurations. Models are loaded
before the clock starts. Each side is a separate process; rounds are interleaved, and ratios are medians over the
rounds.
"""

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.pictures import draw

if TYPE_CHECKING:
    import torch

    from pairmill.pipeline.encode.clip_model import ClipModel

PEER = Path(".venv-clip-retrieval/bin/python")
TAR_ROWS = 80
BATCH_SIZE = 32
WORDS = (
    "a",
    "the",
    "of",
    "with",
    "red",
    "small",
    "wooden",
    "table",
    "two",
    "people",
    "walking",
    "on",
    "beach",
    "sunset",
)


def caption(rng: random.Random) -> str:
    """3 to 40 words, with a median of 10, roughly as in alt texts on the web."""
    return " ".join(rng.choices(WORDS, k=min(40, max(3, round(rng.lognormvariate(2.3, 0.5))))))


def write_tars(folder: Path, rows: int) -> list[str]:
    """Write tars of TAR_ROWS captioned pictures each, of 512 x 384 pixels."""
    rng, pictures = random.Random(5), [draw(512, 384, seed=seed) for seed in range(64)]
    paths = []
    for start in range(0, rows, TAR_ROWS):
        paths.append(str(folder / f"{start // TAR_ROWS:05d}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for n in range(start, min(start + TAR_ROWS, rows)):
                for name, data in (
                    (f"{n:06d}.jpg", pictures[n % 64] + b"%d" % n),
                    (f"{n:06d}.txt", caption(rng).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return paths


def save_weights(folder: Path) -> tuple[str, str]:
    """Write the same seeded random ViT-B-32 twice. Returns (the folder for pairmill, the file for clip-retrieval)."""
    import open_clip
    import safetensors.torch
    import torch

    torch.manual_seed(7)
    model = open_clip.create_model("ViT-B-32", load_weights=False)
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    torch.save(model.state_dict(), folder / "weights.pt")
    return str(folder), str(folder / "weights.pt")


def run_pairmill(tars: list[str], model: str, output: str) -> float:
    """Rows per second from tars to committed shards, in this process."""
    from pairmill.jobs.build import prepare
    from pairmill.pipeline.stages.pipelines import open_stages, process_shard
    from pairmill.schemas.jobs import BuildJob
    from pairmill.schemas.manifest import shards_from_table

    values = {"paths": tars, "kind": "corpus"}
    job = {"source": values, "output": output, "shard_rows": TAR_ROWS, "models": [{"name": model, "alias": "m"}]}
    run = {"device": "cpu", "batch_size": BATCH_SIZE}
    pipeline, plan = prepare(BuildJob.model_validate({**job, "run": run}))
    stages = open_stages(pipeline)
    started = time.perf_counter()
    rows = sum(process_shard(shard, stages).kept for shard in shards_from_table(plan.shards))
    seconds = time.perf_counter() - started
    for _, stage in stages:
        stage.close()
    return rows / seconds


def load(tars: list[str], model_folder: str) -> tuple["ClipModel", list["torch.Tensor"], list["torch.Tensor"]]:
    """The model and its batches of tokens, int64 [batch, tokens], padded and trimmed. As in pairmill, the captions of a
    shard are sorted by length."""
    import torch

    from pairmill.pipeline.encode.clip_model import load_model
    from pairmill.schemas.job.models import ModelConfig
    from pairmill.schemas.job.run import RunConfig

    torch.set_num_threads(os.cpu_count() or 1)
    model = load_model(ModelConfig(name=model_folder, alias="m"), RunConfig(device="cpu", batch_size=BATCH_SIZE))
    padded, trimmed = [], []
    for path in tars:
        with tarfile.open(path) as tar:
            captions = [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]  # type: ignore[union-attr]
        tokens = model._tokenizer(captions)
        lengths = model._text.lengths(tokens)
        for part in torch.split(lengths.argsort(), BATCH_SIZE):
            padded.append(tokens[part])
            trimmed.append(tokens[part][:, : int(lengths[part].max())])
    return model, padded, trimmed


def run_forward(tars: list[str], model_folder: str) -> float:
    """Rows per second of the two towers alone."""
    import torch

    model, _, trimmed = load(tars, model_folder)
    pixels = torch.randn(BATCH_SIZE, 3, 224, 224)
    with torch.inference_mode():
        started = time.perf_counter()
        for batch in trimmed:
            model._model.encode_image(pixels[: len(batch)])
            model._text(batch)
        return sum(map(len, trimmed)) / (time.perf_counter() - started)


def run_text(tars: list[str], model_folder: str, *, padded: bool) -> float:
    """Rows per second of the text tower alone."""
    import torch

    model, full, trimmed = load(tars, model_folder)
    encode = model._model.encode_text if padded else model._text
    batches = full if padded else trimmed
    with torch.inference_mode():
        started = time.perf_counter()
        for batch in batches:
            encode(batch)
        return sum(map(len, batches)) / (time.perf_counter() - started)


SIDES: dict[str, Callable[[list[str], str, str], float]] = {
    "forward": lambda tars, model, _: run_forward(tars, model),
    "pairmill": run_pairmill,
    "text": lambda tars, model, _: run_text(tars, model, padded=False),
    "padded text": lambda tars, model, _: run_text(tars, model, padded=True),
}


def measured(command: list[str]) -> float:
    """Run a command that prints its rate as its last line, and return the rate."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return float(json.loads(lines[-1])["rows_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="only pairmill and the model alone")
    parser.add_argument("--run", nargs=4, metavar=("SIDE", "TARS", "MODEL", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        side, tars, model, output = options.run
        print("\n" + json.dumps({"rows_per_s": SIDES[side](tars.split(","), model, output)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tars", "model"):
            Path(folder, name).mkdir()
        compare(options, Path(folder))


def fastest(peer: Callable[[int, str], list[str]]) -> int:
    """The faster of two batch sizes for clip-retrieval. `peer` returns the command for a batch size and an output."""
    with tempfile.TemporaryDirectory() as out:
        tried = {size: measured(peer(size, f"{out}/{size}")) for size in (64, 256)}
    best = max(tried, key=lambda size: tried[size])
    print(f"clip-retrieval: {tried} -> batches of {best}", flush=True)
    return best


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run all sides in turn and print the table."""
    tars = ",".join(write_tars(folder / "tars", options.rows))
    model, weights = save_weights(folder / "model")
    threads = str(os.cpu_count())

    def peer(batch_size: int, output: str) -> list[str]:
        words = ["-m", "bench.peers.clip_retrieval_run", tars, weights, output, str(batch_size), "2", threads]
        return [str(PEER), *words]

    peers = {} if options.no_peer else {"clip-retrieval": fastest(peer)}
    found: dict[str, list[float]] = {}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as out:
            ours = [sys.executable, "-m", "bench.embed", "--run"]
            for name, command in {
                **{
                    name: [*ours, name, tars, model, f"{out}/ours"]
                    for name in (SIDES if peers else ("forward", "pairmill"))
                },
                **{name: peer(best, f"{out}/theirs") for name, best in peers.items()},
            }.items():
                found.setdefault(name, []).append(measured(command))
        print(number + 1, {name: round(rates[-1], 1) for name, rates in found.items()}, flush=True)
    print()
    for name, rates in found.items():
        print(f"{name:<16}{statistics.median(rates):>8.1f} pairs/s")
    for name in ("forward", *peers):
        print_ratio(f"pairmill / {name}", found["pairmill"], found[name])
    if peers:
        print_ratio("text tower, trimmed / padded", found["text"], found["padded text"])


def print_ratio(label: str, rates: list[float], others: list[float]) -> None:
    ratios = [rate / other for rate, other in zip(rates, others, strict=True)]
    print(f"{label}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
