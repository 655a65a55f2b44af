"""Measures the CPU time per picture of `ImageProcessor.process`, compared with OpenCV and with an earlier version.

    python -m bench.process ../shared/data/pairs --rounds 5

`process` turns a file into the stored picture, checks the picture and computes its hash. It runs in three
configurations: with the defaults; with `images.chroma: 420`, which is what OpenCV stores; and, given `--scores`, with
all measures of a job's `scores`. OpenCV takes the same steps as img2dataset: decode, resize with area averaging to 512
px if larger, encode at quality 95 with 4:2:0. The pictures are real photographs, except those of 1,600 px or more,
which are synthetic because none of the photographs is that large. Each configuration, OpenCV and the earlier version
run in separate processes, on one thread. They take turns of about 50 ms on the same pictures, so that a machine whose
speed changes within seconds slows all of them down alike. A ratio above 1 means that `process` is faster.
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bench.earlier_version import earlier_version, start
from bench.pictures import draw
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.jobs import BuildJob

SMALL, MEDIUM, LARGE = "<= 512 px", "640 -> 512 px", ">= 1600 px"
SIDE, QUALITY = 512, 95
JOB = {"source": {"paths": ["in.parquet"]}, "output": "out"}
PASSES = 2
"""How often each round goes through the pictures."""
TURN = {SMALL: 100, MEDIUM: 12, LARGE: 3}
"""Pictures of each size class in a turn, which take each side about 50 ms."""
SCORES, EARLIER = "process, scores", "earlier version"


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


def serve(side: str, folder: Path) -> None:
    """Process the pictures that stdin asks for, one JSON array [size class, start, stop] per line, and answer each line
    with the CPU seconds that they took."""
    cv2.setNumThreads(1)
    work, bodies = SIDES[side](), pictures(folder)
    for line in sys.stdin:
        name, first, last = json.loads(line)
        started = time.thread_time()
        for body in bodies[name][first:last]:
            work(body)
        print(time.thread_time() - started, flush=True)


class Side:
    """A process that serves one side, or the configuration `process` of the earlier version."""

    def __init__(self, side: str, folder: Path, earlier: dict[str, str]) -> None:
        self._label, environment = side, earlier if side == EARLIER else None
        arguments = [str(folder), "--side", "process" if side == EARLIER else side]
        self._process = start("bench.process", arguments, environment)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def seconds(self, name: str, first: int, last: int) -> float:
        """CPU seconds of some pictures of a size class."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([name, first, last]), file=self._process.stdin, flush=True)
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"the process of {self._label} ended")
        return float(answer)


def milliseconds(sides: dict[str, Side], name: str, count: int, passes: int) -> dict[str, float]:
    """Side -> CPU milliseconds per picture of a size class, which has `count` pictures."""
    spent = dict.fromkeys(sides, 0.0)
    for _ in range(passes):
        for first in range(0, count, TURN[name]):
            for label, side in sides.items():
                spent[label] += side.seconds(name, first, first + TURN[name])
    return {label: total / passes / count * 1e3 for label, total in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scores", action="store_true", help="also with all measures of `scores`")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.side:
        serve(options.side, folder)
        return
    counts = {name: len(bodies) for name, bodies in pictures(folder).items()}
    labels = [side for side in (*SIDES, EARLIER) if side != SCORES or options.scores]
    with ExitStack() as stack:
        earlier = stack.enter_context(earlier_version())
        sides = {label: stack.enter_context(Side(label, folder, earlier)) for label in labels}
        for name, count in counts.items():
            milliseconds(sides, name, count, passes=1)  # warm up
        rounds = [
            {name: milliseconds(sides, name, count, PASSES) for name, count in counts.items()}
            for _ in range(options.rounds)
        ]
    print_table(labels, rounds)


def print_table(labels: list[str], rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print the medians of the rounds (size class -> side -> milliseconds) and their ratios."""
    for label in labels:
        medians = {name: statistics.median(each[name][label] for each in rounds) for name in TURN}
        print(f"{label:<24}" + "  ".join(f"{name} {value:.2f} ms" for name, value in medians.items()))
    for name in TURN:
        for label in ("process", "process, chroma 420"):
            for other in ("OpenCV", EARLIER):
                ratios = [each[name][other] / each[name][label] for each in rounds]
                print(
                    f"{label} / {other}, {name}: median {statistics.median(ratios):.2f}, "
                    f"{min(ratios):.2f} to {max(ratios):.2f}"
                )


if __name__ == "__main__":
    main()
