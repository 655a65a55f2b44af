"""Generates mutated pictures, decodes them and counts the resulting statuses."""

import io
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig

SEED_BYTES = 200_000


def draw_seeds() -> list[bytes]:
    """One small picture for every format and pixel mode that Pillow writes."""
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
    """Endless mutations: bytes overwritten, removed, repeated, cut off or set to extremes, mostly in the headers."""
    while True:
        body = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            front = min(len(body), 600) if rng.random() < 0.7 else len(body)
            at = rng.randrange(max(front, 1))
            match rng.randrange(6):
                case 0:
                    body[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    del body[at : at + rng.randrange(1, 40)]
                case 2:
                    body[at:at] = body[at : at + rng.randrange(1, 400)]
                case 3:
                    del body[max(at, 16) :]
                case 4:
                    body[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\0\0\0\1"))
                case 5:
                    body[at : at + 2] = rng.choice((b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"\xff\xff", b"\0\0"))
        yield bytes(body)


def seeds_from(folder: Path | None) -> list[bytes]:
    """The synthetic pictures, and the files in a folder that are small enough to decode many times."""
    files = sorted(folder.rglob("*.*")) if folder else []
    return draw_seeds() + [body for path in files if len(body := path.read_bytes()) <= SEED_BYTES]


def decode_mutations(
    seeds: Sequence[bytes], seed: int, count: int, failures: Path | None = None
) -> tuple[Counter[str], float]:
    """Decode `count` mutations. Returns the number of times that each Status or `exception: ...` was the result, and
    the duration of the longest decode in seconds. Writes each picture that raises an exception to `failures`."""
    processor = ImageProcessor(ImagesConfig(size=64, max_pixels=4_000_000))
    found: Counter[str] = Counter()
    slowest = 0.0
    for body, _ in zip(mutations(seeds, random.Random(seed)), range(count), strict=False):
        started = time.perf_counter()
        try:
            found[processor.process(body).status.value] += 1
        except Exception as error:
            found[f"exception: {type(error).__name__}: {error}"[:200]] += 1
            if failures:
                failures.mkdir(parents=True, exist_ok=True)
                (failures / f"exception-{seed}-{found.total()}").write_bytes(body)
        slowest = max(slowest, time.perf_counter() - started)
    return found, slowest
