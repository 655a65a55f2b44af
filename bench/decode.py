"""Measures how fast one core turns original pictures into stored pictures: `python -m bench.decode`.

Decodes, resizes (longer side 512, area averaging, only if larger) and encodes (JPEG, quality 95, 4:2:0) with Pillow,
OpenCV, simplejpeg and `image/processor.py`, which also reads the EXIF orientation, detects pictures of a single color
and computes the perceptual hash. Uses one thread and counts CPU seconds, so that other work on the machine matters
less. Rounds are interleaved, and each figure is the median of the rounds.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.pictures import draw
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig

SIZES = ((640, 480), (1024, 768), (3000, 2000))
SIDE, QUALITY = 512, 95


def _fit(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(width, height))
    return round(width * scale), round(height * scale)


def with_pillow(jpeg: bytes) -> bytes:
    """Pillow alone; BOX is its filter for area averaging."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    target = _fit(*image.size)
    stored = io.BytesIO()
    (image if target == image.size else image.resize(target, Image.Resampling.BOX)).save(
        stored, "JPEG", quality=QUALITY
    )
    return stored.getvalue()


def _shrink(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    target = _fit(width, height)
    if target == (width, height):
        return pixels
    return np.asarray(cv2.resize(pixels, target, interpolation=cv2.INTER_AREA), np.uint8)


def with_opencv(jpeg: bytes) -> bytes:
    """OpenCV alone, like img2dataset."""
    pixels = np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8)
    return cv2.imencode(".jpg", _shrink(pixels), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def with_simplejpeg(jpeg: bytes) -> bytes:
    """simplejpeg to decode and encode at full size, OpenCV to resize."""
    encoded: bytes = simplejpeg.encode_jpeg(_shrink(simplejpeg.decode_jpeg(jpeg)), QUALITY, "RGB", "420")
    return encoded


def with_pipeline() -> Callable[[bytes], object]:
    """`pairmill.pipeline.image.processor` with a job's defaults."""
    return ImageProcessor(ImagesConfig(size=SIDE, quality=QUALITY)).process


def measure(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Name of the method -> pictures per second for each of SIZES."""
    ways: dict[str, Callable[[bytes], object]] = {
        "Pillow": with_pillow,
        "OpenCV": with_opencv,
        "simplejpeg + OpenCV": with_simplejpeg,
        "pairmill.pipeline.image.processor (and hash)": with_pipeline(),
    }
    cv2.setNumThreads(1)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for width, height in SIZES:
        jpegs = [draw(width, height, seed) for seed in range(4)]
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way(jpegs[0])
        for _ in range(rounds):
            for name, way in ways.items():
                seen[name].append(_rate(way, jpegs, seconds))
        for name, values in seen.items():
            rates[name].append(statistics.median(values))
    return rates


def _rate(way: Callable[[bytes], object], jpegs: list[bytes], seconds: float) -> float:
    started, done = time.process_time(), 0
    while (elapsed := time.process_time() - started) < seconds:
        for jpeg in jpegs:
            way(jpeg)
        done += len(jpegs)
    return done / elapsed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per method, size and round")
    options = parser.parse_args()
    table = Table(title="pictures per second per core")
    table.add_column("method")
    for width, height in SIZES:
        table.add_column(f"{width} x {height}", justify="right")
    for name, values in measure(options.rounds, options.seconds).items():
        table.add_row(name, *(f"{value:.0f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
