"""Compares exporting tars with rewriting the same tars with webdataset, and with copying them.

    python -m bench.export ../shared/data/pairs [--rows 6000] [--rounds 5]

The dataset is a corpus of real photographs in tars, embedded by `tiny`; its rows repeat the photographs. All pictures
are exported unchanged to tars on the same disk. webdataset reads the corpus and writes its samples with `TarWriter`,
which neither shuffles nor checks anything; `copy` copies the files. pairmill runs in one process, as in all exports of
fewer than 20,000 rows. The sides alternate; ratios are medians over the rounds.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import webdataset

from bench.readers import add_member
from pairmill.jobs.build import build
from pairmill.jobs.export import export
from pairmill.jobs.select import select
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.subset import SelectJob

SHARD_ROWS = 1_000


def write_corpus(photos: Path, folder: Path, rows: int) -> None:
    """Write tars of SHARD_ROWS photographs each. Every photograph has a different caption."""
    import tarfile

    folder.mkdir()
    pairs = [json.loads(line) for line in (photos / "pairs.jsonl").read_text().splitlines()]
    for start in range(0, rows, SHARD_ROWS):
        with tarfile.open(folder / f"{start // SHARD_ROWS:05d}.tar", "w") as tar:
            for row in range(start, min(start + SHARD_ROWS, rows)):
                pair = pairs[row % len(pairs)]
                add_member(tar, f"{row:08d}.jpg", (photos / pair["file"]).read_bytes())
                add_member(tar, f"{row:08d}.txt", f"{row}: {pair['captions'][0]}".encode())


def with_pairmill(folder: Path, output: Path) -> None:
    values = {"dataset": f"{folder}/out", "subset": "all", "output": str(output), "samples_per_file": SHARD_ROWS}
    export(ExportJob.model_validate(values))


def with_webdataset(folder: Path, output: Path) -> None:
    output.mkdir()
    for path in sorted((folder / "corpus").glob("*.tar")):
        with webdataset.TarWriter(str(output / path.name)) as writer:
            for sample in webdataset.WebDataset([str(path)], shardshuffle=False):
                writer.write(
                    {name: value for name, value in sample.items() if not name.startswith("__") or name == "__key__"}
                )


def with_copy(folder: Path, output: Path) -> None:
    shutil.copytree(folder / "corpus", output)


SIDES: dict[str, Callable[[Path, Path], None]] = {
    "pairmill": with_pairmill,
    "webdataset": with_webdataset,
    "copy": with_copy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(options.photos, folder / "corpus", options.rows)
        source = {"paths": [f"{folder}/corpus"], "kind": "corpus"}
        build(BuildJob.model_validate({"source": source, "output": f"{folder}/out", "models": [{"name": "tiny"}]}))
        select(SelectJob.model_validate({"dataset": f"{folder}/out", "name": "all"}))
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side, write in SIDES.items():
                started = time.perf_counter()
                write(folder, folder / "written")
                seconds[side].append(time.perf_counter() - started)
                shutil.rmtree(folder / "written")
        megabytes = sum(path.stat().st_size for path in (folder / "corpus").iterdir()) / 1e6
    for side, times in seconds.items():
        median = statistics.median(times)
        print(f"{side:12} {options.rows / median:8.0f} rows/s {megabytes / median:8.0f} MB/s")
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds["pairmill"], seconds["webdataset"], strict=True))
    print(f"pairmill / webdataset: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
