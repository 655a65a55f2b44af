"""Measures the pipeline's steady download rate on loopback, compared with decode + resize + encode on the same cores.

    python -m bench.download [--rows 6000] [--rounds 5]

Both sides of a round process the same pictures with the same settings (512 px, keep_ratio_largest, only if larger, JPEG
quality 95, no model). `pipeline` is the slope of downloaded rows over time, without the first and the last twentieth:
it excludes Ray's start-up and includes Ray, the HTTP client, the web server (a separate process on the same cores) and
the commits. `codec` is `ImageProcessor.process` on the bytes in memory, one thread per core. Rounds are interleaved;
the table gives the median and the range of the ratio.
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.clock import Clock
from bench.pictures import draw
from bench.web import serving
from pairmill.jobs.build import build
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.jobs import BuildJob

SIZES = [(640, 480)] * 6 + [(800, 600)] * 6 + [(1024, 768)] * 6 + [(400, 300)] + [(3000, 2000)]
"""Sizes of the pictures, with a median of half a megapixel. One in twenty is small, and one in twenty is large."""


def pipeline_rate(urls: list[str], folder: Path, shard_rows: int) -> float:
    """Rows per second of one build, without its start and end."""
    pq.write_table(pa.table({"url": urls, "caption": [f"number {n}" for n in range(len(urls))]}), folder / "in.parquet")
    values = {
        "source": {"paths": [str(folder / "in.parquet")]},
        "output": str(folder / "out"),
        "shard_rows": shard_rows,
        "fetch": {"allow_networks": ["127.0.0.0/8"]},
    }
    clock = Clock()
    result = build(BuildJob.model_validate(values), clock)
    assert result.kept == len(urls), result.statuses
    return clock.rows_per_s


def codec_rate(pictures: list[bytes], rows: int) -> float:
    """Pictures per second of decode + resize + encode, one thread per core."""
    process = ImageProcessor(ImagesConfig()).process
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        started = time.perf_counter()
        list(pool.map(lambda n: process(pictures[n % len(pictures)]), range(rows)))
        return rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shard-rows", type=int, default=500)
    options = parser.parse_args()
    pictures = [draw(*SIZES[n % len(SIZES)], seed=n) for n in range(200)]
    print(f"{len(pictures)} pictures, {sum(map(len, pictures)) / len(pictures) / 1000:.0f} kB on average")
    print(f"{'round':<8}{'pipeline/s':>12}{'codec/s':>12}{'ratio':>8}")
    ratios = []

    with serving(pictures) as bases:
        urls = [f"{bases[n % len(bases)]}/{n}.jpg" for n in range(options.rows)]
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                pipeline = pipeline_rate(urls, Path(folder), options.shard_rows)
            codec = codec_rate(pictures, options.rows // 2)
            ratios.append(pipeline / codec)
            print(f"{number + 1:<8}{pipeline:>12.0f}{codec:>12.0f}{ratios[-1]:>8.2f}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.2f}, range {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
