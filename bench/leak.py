"""Measures the share of planted evaluation pictures that the hashes of `leak` find, and how many other rows they find.

    python -m bench.leak ../shared/data/pairs

Half of the photographs are the evaluation set. Copies of them are resized and re-encoded, mirrored, or cropped at
random positions, and looked up at each distance. The other half and their copies must not be found.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pairmill.pipeline.image.pdq import pdq
from pairmill.pipeline.image.phash import phash_of_luma
from pairmill.pipeline.leak.variants import VARIANTS, is_plain, variant_hashes
from pairmill.schemas.leak import LeakKind

Pixels = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
DISTANCES: dict[LeakKind, tuple[int, ...]] = {"phash": (2, 4, 6, 8, 10), "pdq": (10, 20, 31, 40, 50)}
AREA, SIDE = 0.8**0.5, 0.8


def photographs(folder: Path, most: int) -> list[Pixels]:
    """Distinct photographs, at most 640 pixels wide and tall, uint8 [height, width, 3]."""
    paths = sorted(folder.rglob("*.jpg"))
    found: list[Pixels] = []
    seen = np.zeros(0, np.uint64)
    for at in np.random.default_rng(0).permutation(len(paths)):
        pixels = cv2.imread(str(paths[at]))
        if pixels is None or len(found) == most:
            continue
        scale = min(1.0, 640 / max(pixels.shape[:2]))
        small = np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        own = np.uint64(int(phash_of_luma(gray(small)), 16))
        if (np.bitwise_count(seen ^ own) > 12).all():
            found.append(small)
            seen = np.append(seen, own)
    return found


def gray(pixels: Pixels) -> Pixels:
    """The brightness of a picture, uint8 [height, width]."""
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)


def saved(pixels: Pixels, scale: float, quality: int) -> Pixels:
    """The picture resized, encoded as a JPEG and decoded again."""
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", small, [1, quality])[1], 1), np.uint8)


def cropped(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """A crop with this share of each side, at a random position."""
    height, width = pixels.shape[:2]
    tall, wide = round(height * share), round(width * share)
    top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
    return pixels[top : top + tall, left : left + wide]


def changed(pixels: Pixels, rng: np.random.Generator) -> dict[str, Pixels]:
    """Name of a change -> the picture changed in this way."""
    mirrored = np.ascontiguousarray(pixels[:, ::-1])
    return {
        "resized to 50 %, JPEG quality 75": saved(pixels, 0.5, 75),
        "resized to 30 %, JPEG quality 50": saved(pixels, 0.3, 50),
        "mirrored": saved(mirrored, 0.7, 75),
        "80 % of the area": saved(cropped(pixels, AREA, rng), 0.7, 75),
        "80 % of each side": saved(cropped(pixels, SIDE, rng), 0.7, 75),
        "mirrored, 80 % of the area": saved(cropped(mirrored, AREA, rng), 0.7, 75),
    }


def hash_of(kind: LeakKind, luma: Pixels) -> Words:
    """The hash of a picture as a build computes it, uint64 [words]."""
    digits = phash_of_luma(luma) if kind == "phash" else pdq(luma).digits
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)


def distances(hashes: Words, asked: Words) -> npt.NDArray[np.int64]:
    """The number of bits in which each hash differs from `asked`, int64 [hashes]."""
    bits: npt.NDArray[np.int64] = np.bitwise_count(hashes ^ asked).sum(axis=1, dtype=np.int64)
    return bits


def measure(kind: LeakKind, evaluation: list[Pixels], others: list[Pixels]) -> dict[str, object]:
    """The recall for each kind of copy and each distance, and the share of other rows found."""
    rng, started = np.random.default_rng(1), time.process_time()
    variants = [variant_hashes(gray(each), kind, VARIANTS)[0] for each in evaluation]
    seconds = (time.process_time() - started) / len(evaluation)
    nearest: dict[str, list[int]] = {}
    for pixels, hashes in zip(evaluation, variants, strict=True):
        for name, copy in changed(pixels, rng).items():
            nearest.setdefault(name, []).append(int(distances(hashes, hash_of(kind, gray(copy))).min()))
    everything = np.concatenate(variants)
    for pixels in others:
        for copy in (pixels, *changed(pixels, rng).values()):
            found = int(distances(everything, hash_of(kind, gray(copy))).min())
            nearest.setdefault("other pictures and their copies", []).append(found)
    shares = {
        name: {at: round(float((np.array(bits) <= at).mean()), 4) for at in DISTANCES[kind]}
        for name, bits in nearest.items()
    }
    return {
        "kind": kind,
        "evaluation_pictures": len(evaluation),
        "hashes": len(everything),
        "cpu_ms_per_picture": round(1e3 * seconds, 1),
        "found_within": shares,
        "others": len(nearest["other pictures and their copies"]),
        "nearest_other_bits": min(nearest["other pictures and their copies"]),
    }


def main() -> None:
    """Print one JSON line per hash."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="a folder with .jpg files")
    parser.add_argument("--most", type=int, default=800, help="how many photographs to use")
    args = parser.parse_args()
    found = photographs(args.pictures, args.most)
    found = [each for each in found if not is_plain(gray(each))]
    middle = len(found) // 2
    for kind in DISTANCES:
        print(json.dumps(measure(kind, found[:middle], found[middle:])), flush=True)


if __name__ == "__main__":
    main()
