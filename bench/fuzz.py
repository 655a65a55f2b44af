"""Mutated pictures through the decoder: no crash, no hang, no exception that is not a Status.

    python -m bench.fuzz --decodes 100000 --folder ../shared/data/awkward

Works in child processes, so that a crash is counted and the file kept under `bench-out/`. Drawn pictures in every
format are always among the seeds; `--folder` adds real ones.
"""

import argparse
import io
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image

from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.jobs import ImagesConfig

SLOW_S = 20.0
CHUNK = 500
SEED_BYTES = 200_000
OUT = Path("bench-out/fuzz")


def drawn() -> list[bytes]:
    """One small picture in every format and pixel mode that Pillow writes."""
    small = np.random.default_rng(7).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(small)
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = []
    for format, mode, options in (
        ("JPEG", "RGB", {"exif": exif}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"subsampling": 0, "comment": b"x" * 50}),
        ("PNG", "RGB", {"exif": exif}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {}),
        ("GIF", "P", {"save_all": True, "append_images": [picture.convert("P")] * 3}),
        ("WEBP", "RGB", {"exif": exif}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("BMP", "RGB", {}),
        ("AVIF", "RGB", {}),
    ):
        file = io.BytesIO()
        converted = picture.convert("I").point(lambda value: value * 257) if mode == "I;16" else picture.convert(mode)
        (converted.convert("I;16") if mode == "I;16" else converted).save(file, format, **options)
        seeds.append(file.getvalue())
    return seeds


def mutations(seeds: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    """Bytes flipped, cut out, doubled, cut off, set to extremes; mostly near the front, where the headers are."""
    while True:
        body = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            front = min(len(body), 600) if rng.random() < 0.7 else len(body)
            place = rng.randrange(max(front, 1))
            match rng.randrange(6):
                case 0:
                    body[place : place + 1] = bytes([rng.randrange(256)])
                case 1:
                    del body[place : place + rng.randrange(1, 40)]
                case 2:
                    body[place:place] = body[place : place + rng.randrange(1, 400)]
                case 3:
                    del body[max(place, 16) :]
                case 4:
                    body[place : place + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\0\0\0\1"))
                case 5:
                    body[place : place + 2] = rng.choice((b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"\xff\xff", b"\0\0"))
        yield bytes(body)


def seeds_from(folder: Path | None) -> list[bytes]:
    """The drawn pictures, and the files of a folder that are not too large to decode often."""
    files = sorted(folder.rglob("*.*")) if folder else []
    return drawn() + [body for path in files if len(body := path.read_bytes()) <= SEED_BYTES]


def decode_chunk(seeds: Sequence[bytes], seed: int, count: int) -> tuple[Counter[str], float]:
    """Decode `count` mutations; (how often each Status, or `exception: ...`; the longest in seconds)."""
    processor = ImageProcessor(ImagesConfig(size=64, max_pixels=4_000_000))
    found: Counter[str] = Counter()
    slowest = 0.0
    for body, _ in zip(mutations(seeds, random.Random(seed)), range(count), strict=False):
        started = time.perf_counter()
        try:
            found[processor.process(body).status.value] += 1
        except Exception as error:
            found[f"exception: {type(error).__name__}: {error}"[:200]] += 1
            OUT.mkdir(parents=True, exist_ok=True)
            (OUT / f"exception-{seed}-{found.total()}").write_bytes(body)
        slowest = max(slowest, time.perf_counter() - started)
    return found, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decodes", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seeds = seeds_from(arguments.folder)
    total: Counter[str] = Counter()
    slowest, crashes, started = 0.0, 0, time.perf_counter()
    pool: ProcessPoolExecutor | None = None
    for number in range(arguments.seed, arguments.seed + -(-arguments.decodes // CHUNK)):
        pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            found, longest = pool.submit(decode_chunk, seeds, number, CHUNK).result()
        except BrokenProcessPool:  # takes its pool along
            crashes, pool = crashes + 1, None
            print(f"crash in chunk {number}: python -m bench.fuzz --decodes {CHUNK} --seed {number}")
            continue
        total.update(found)
        slowest = max(slowest, longest)
    for name, count in total.most_common():
        print(f"{count:>9,}  {name}")
    exceptions = sum(count for name, count in total.items() if name.startswith("exception"))
    print(
        f"{total.total():,} decodes of {len(seeds)} seeds in {time.perf_counter() - started:.0f} s: "
        f"{crashes} crashes, {exceptions} exceptions, slowest {slowest:.2f} s"
    )


if __name__ == "__main__":
    main()
