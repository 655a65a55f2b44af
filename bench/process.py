"""Measures the CPU time per picture of `ImageProcessor.process`, compared with OpenCV and with an earlier version.

    python -m bench.process ../shared/data/pairs --rounds 5

`process` turns a file into the stored picture, checks the picture and computes its hash. It runs in three
configurations: with the defaults; with `images.chroma: 420`, which is what OpenCV stores; and, given `--scores`, with
all measures of a job's `scores`. OpenCV takes the same steps as img2dataset: decode, resize with area averaging to 512
px if larger, encode at quality 95 with 4:2:0. The pictures are real photographs, except those of 1,600 px or more,
which are synthetic because none of the photographs is that large. Each configuration, OpenCV and the earlier version
run in separate processes, on one thread, and rounds are interleaved. A ratio above 1 means that `process` is faster.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bench.earlier_version import earlier_version, run
from bench.pictures import draw
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.jobs import BuildJob

SMALL, MEDIUM, LARGE = "<= 512 px", "640 -> 512 px", ">= 1600 px"
SIDE, QUALITY = 512, 95
JOB = {"source": {"paths": ["in.parquet"]}, "output": "out"}
REPEATS = 2
SCORES = "process, scores"


def pictures(folder: Path) -> dict[str, list[bytes]]:
    """Size class -> JPEG files."""
    found: dict[str, list[bytes]] = {SMALL: [], MEDIUM: [], LARGE: []}
    for path in sorted(folder.rglob("*.jpg")):
        body = path.read_bytes()
        longer = max(Image.open(io.BytesIO(body)).size)
        if longer <= SIDE or longer == 640:
            found[SMALL if longer <= SIDE else MEDIUM].append(body)
    found[LARGE] = [draw(*size, seed) for seed, size in enumerate([(1600, 1200), (2400, 1600), (3000, 2000)] * 2)]
    return found


def with_opencv(body: bytes) -> None:
    pixels = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    height, width = pixels.shape[:2]
    if (scale := SIDE / max(height, width)) < 1:
        size = (round(width * scale), round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def measuring() -> Callable[[bytes], object]:
    from pairmill.schemas.job.pictures import MEASURES  # imported here because the earlier version lacks it

    return ImageProcessor(BuildJob.model_validate(JOB).images, MEASURES).process


def processor(**images: str) -> Callable[[bytes], object]:
    return ImageProcessor(BuildJob.model_validate({**JOB, "images": images}).images).process


SIDES: dict[str, Callable[[], Callable[[bytes], object]]] = {
    "process": processor,
    "process, chroma 420": lambda: processor(chroma="420"),
    SCORES: measuring,
    "OpenCV": lambda: with_opencv,
}


def milliseconds(side: str, folder: Path) -> dict[str, float]:
    """Size class -> CPU milliseconds per picture in the better of two passes over the class."""
    cv2.setNumThreads(1)
    work, found = SIDES[side](), {}
    for name, bodies in pictures(folder).items():
        passes = []
        for _ in range(REPEATS):
            started = time.thread_time()
            for body in bodies:
                work(body)
            passes.append((time.thread_time() - started) / len(bodies) * 1e3)
        found[name] = min(passes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scores", action="store_true", help="also with all measures of `scores`")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.side:
        print(json.dumps(milliseconds(options.side, folder)))
        return
    sides = [side for side in SIDES if side != SCORES or options.scores]
    found: dict[str, list[dict[str, float]]] = {}
    with earlier_version() as environment:
        for _ in range(options.rounds):
            for side in sides:
                found.setdefault(side, []).append(json.loads(run("bench.process", [str(folder), "--side", side])))
            earlier = json.loads(run("bench.process", [str(folder), "--side", "process"], environment))
            found.setdefault("earlier version", []).append(earlier)
    for side, rounds in found.items():
        medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        print(f"{side:<24}" + "  ".join(f"{name} {value:.2f} ms" for name, value in medians.items()))
    for name in (SMALL, MEDIUM, LARGE):
        for side in ("process", "process, chroma 420"):
            for other in ("OpenCV", "earlier version"):
                ratios = [theirs[name] / ours[name] for ours, theirs in zip(found[side], found[other], strict=True)]
                print(
                    f"{side} / {other}, {name}: median {statistics.median(ratios):.2f}, "
                    f"{min(ratios):.2f} to {max(ratios):.2f}"
                )


if __name__ == "__main__":
    main()
