"""Compares the perceptual hash with imagehash's implementation of the algorithm."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.fftpack import dct

from pairmill.pipeline.image.phash import phash

Pixels = npt.NDArray[np.uint8]


def smooth(seed: int, width: int = 400, height: int = 300) -> Pixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def as_imagehash(pixels: Pixels) -> str:
    """imagehash.phash(image, hash_size=8, highfreq_factor=4), line by line."""
    image = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    frequencies = dct(dct(np.asarray(image), axis=0), axis=1)
    low = frequencies[:8, :8]
    bits = (low > np.median(low)).flatten()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


@pytest.mark.parametrize("seed", range(20))
def test_hashes_are_close_to_imagehash(seed: int) -> None:
    ours = phash(smooth(seed))
    assert len(ours) == 16
    assert distance(ours, as_imagehash(smooth(seed))) <= 2


def test_hashes_of_small_pictures_are_close_to_imagehash_too() -> None:
    for seed in range(20):
        pixels = smooth(seed, 60, 50)
        assert distance(phash(pixels), as_imagehash(pixels)) <= 4


def test_similar_pictures_have_similar_hashes_and_others_do_not() -> None:
    hashes = []
    for seed in range(10):
        pixels = smooth(seed)
        hashes.append(phash(pixels))
        _, packed = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 40])
        again = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
        smaller = np.asarray(cv2.resize(pixels, (200, 150), interpolation=cv2.INTER_AREA), np.uint8)
        assert distance(phash(again), hashes[-1]) <= 6
        assert distance(phash(smaller), hashes[-1]) <= 6
    apart = [distance(one, other) for index, one in enumerate(hashes) for other in hashes[index + 1 :]]
    assert min(apart) > 12


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_flat_pictures_do_not_hash_floating_point_noise(value: int) -> None:
    assert phash(np.full((100, 77, 3), value, np.uint8)) == ("8" if value else "0") + "0" * 15


def test_pictures_of_odd_sizes_have_hashes() -> None:
    for shape in ((1, 1, 3), (1, 500, 3), (700, 2, 3)):
        assert len(phash(np.full(shape, 9, np.uint8))) == 16
