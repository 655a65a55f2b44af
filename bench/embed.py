"""Compares pairmill's speed at embedding tars on the CPU with clip-retrieval's.

    make bench-peers && .venv/bin/python -m bench.embed --rows 960 --rounds 5

Both run a ViT-B-32 with the same random weights, in float32, on all cores. `pairmill` runs a plain loop over a shard's
stages (read, load, encode, commit) on tars of 512 px JPEGs. `clip-retrieval` runs its own reader, mapper and writer on
the same tars, in the faster of two configurations. Models are loaded before the clock starts. Each side is a separate
process; rounds are interleaved, and ratios are medians over the rounds.
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
    from pairmill.pipeline.stages.stage import Stage, StageSpec
    from pairmill.schemas.manifest import Shard

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


def open_build(tars: list[str], model: str, output: str) -> tuple[list["Shard"], list[tuple["StageSpec", "Stage"]]]:
    """The shards of a build from tars, and its stages, opened in this process."""
    from pairmill.jobs.build import prepare
    from pairmill.pipeline.stages.pipelines import open_stages
    from pairmill.schemas.jobs import BuildJob
    from pairmill.schemas.manifest import shards_from_table

    values = {"paths": tars, "kind": "corpus"}
    job = {"source": values, "output": output, "shard_rows": TAR_ROWS, "models": [{"name": model, "alias": "m"}]}
    run = {"device": "cpu", "batch_size": BATCH_SIZE}
    pipeline, plan = prepare(BuildJob.model_validate({**job, "run": run}))
    return list(shards_from_table(plan.shards)), list(open_stages(pipeline))


def run_pairmill(tars: list[str], model: str, output: str) -> float:
    """Rows per second from tars to committed shards, in this process."""
    from pairmill.pipeline.stages.pipelines import process_shard

    shards, stages = open_build(tars, model, output)
    started = time.perf_counter()
    rows = sum(process_shard(shard, stages).kept for shard in shards)
    seconds = time.perf_counter() - started
    for _, stage in stages:
        stage.close()
    return rows / seconds


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
    parser.add_argument("--run", nargs=3, metavar=("TARS", "MODEL", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        tars, model, output = options.run
        print("\n" + json.dumps({"rows_per_s": run_pairmill(tars.split(","), model, output)}))
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

    best = fastest(peer)
    found: dict[str, list[float]] = {"pairmill": [], "clip-retrieval": []}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as out:
            words = [sys.executable, "-m", "bench.embed", "--run", tars, model, f"{out}/ours"]
            for name, command in {"pairmill": words, "clip-retrieval": peer(best, f"{out}/theirs")}.items():
                found[name].append(measured(command))
        print(number + 1, {name: round(rates[-1], 1) for name, rates in found.items()}, flush=True)
    print()
    for name, rates in found.items():
        print(f"{name:<16}{statistics.median(rates):>8.1f} pairs/s")
    ratios = [ours / theirs for ours, theirs in zip(*found.values(), strict=True)]
    print(f"pairmill / clip-retrieval: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
