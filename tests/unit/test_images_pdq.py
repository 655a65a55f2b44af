"""Compares PDQ hashes with those of another program and with the definition written out in loops."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from scipy.fft import dct

from pairmill.pipeline.image.pdq import pdq
from pairmill.pipeline.image.phash import phash

PAIRS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pairs"

OF_PDQHASH = {
    "cc_challenge18/0006400c1c224e19.jpg": "c16b03f48c1ec2470c38f847f3240c5afb268fd878e2e1c16f449c3fef0da0bf",
    "coco/val2017/000000006723.jpg": "fca67bfd7e791dc34e719ae0861c05b527a2cbc21bc929edd4c3c4a385b00a58",
    "coco/val2017/000000205401.jpg": "db897160e1768d9f3acd66a1e6aa19e6c93c265732c3c9888f322607797c1d71",
    "coco/val2017/000000580294.jpg": "0661f0b71f8cc8e045b2d67b232d3bb488d29c5dcdcca7b34a1b316833567b95",
    "flickr8k/thumb200/1093737381_b313cd49ff.jpg": "3033f2f39c238c8967fc67047b04f9f89c41e44171d9118c1f8e0fff6231a377",
    "flickr8k/thumb200/1231229740_8dcbf80bfb.jpg": "5526fa74eab9953abd576af16ea3ad4a928999a1ae1401b5f2eaeb430617c121",
    "flickr8k/thumb200/1346529555_e916816cfe.jpg": "c64d484d489d48343acd7492f4d9a1662d9e9e96a7335ac8969366ec1b6b93b6",
    "flickr8k/thumb200/1419286010_b59af3962a.jpg": "33b186267c7377eda448c0c49f8edb7308e761be471094e3794a524fa5ad0ab5",
    "flickr8k/thumb200/1508269285_6c5723f67d.jpg": "e50fc746bfbf383df90081c28fbec31532600c19cd86b3763238cca349c771fc",
    "flickr8k/thumb200/173020287_230bfc4ffc.jpg": "c6d2af5ab35ad18eda9e4ab32692259631ca58624962adb6a594d5c9958c9fcc",
    "flickr8k/thumb200/1965278563_8279e408de.jpg": "9c363f3bd44d04d9614b96495d6aa9b096d64a58b5a2d295ad5555a5b6d1166b",
    "flickr8k/thumb200/2081141788_38fa84ce3c.jpg": "f30d9411365a260ff59fbcd71a806ec9e6fd3327144fcc84ec013b969b82b389",
}
"""Photograph -> hash from pdqhash 0.2.8, the bindings of Facebook's C++ code. All have quality 100."""
FIRST = next(iter(OF_PDQHASH))

Luma = Pixels = npt.NDArray[np.uint8]


def luma_of(name: str) -> Luma:
    picture = cv2.imread(str(PAIRS / name))
    assert picture is not None
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), np.uint8)


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def by_definition(luma: Luma) -> tuple[str, int]:
    """The hash and its quality by definition: averages windows of ceil(side / 128) pixels (truncated at the edges)
    along each axis, does so again, and then samples 64 points per side."""
    filtered = luma.astype(np.float64)
    for axis in (0, 1, 0, 1):
        lines = np.moveaxis(filtered, axis, 0)
        window = -(-len(lines) // 128)
        before = (window - 1) // 2
        means = [lines[max(0, at - before) : at - before + window].mean(axis=0) for at in range(len(lines))]
        filtered = np.moveaxis(np.stack(means), 0, axis)
    rows, columns = (np.floor((np.arange(64) + 0.5) * side / 64).astype(int) for side in luma.shape)
    small = filtered[np.ix_(rows, columns)]
    low = dct(dct(small, axis=0, norm="ortho"), axis=1, norm="ortho")[1:17, 1:17]
    bits = (low > np.sort(low, axis=None)[127]).ravel()
    steps = sum(int(abs(step) * 100 / 255) for axis in (0, 1) for step in np.diff(small, axis=axis).ravel())
    return f"{sum(1 << at for at in np.flatnonzero(bits).tolist()):064x}", min(100, steps // 90)


@pytest.mark.parametrize("name", OF_PDQHASH)
def test_hashes_of_photographs_are_close_to_those_of_another_program(name: str) -> None:
    found = pdq(luma_of(name))
    assert distance(found.digits, OF_PDQHASH[name]) <= 10  # ThreatExchange's requirement for ports
    assert found.quality == 100


@pytest.mark.parametrize("size", [(300, 400), (130, 97), (64, 64), (29, 500), (1_100, 700)])
def test_the_hash_follows_its_definition(size: tuple[int, int]) -> None:
    height, width = size
    for seed, name in enumerate([*OF_PDQHASH][:3]):
        luma = np.asarray(cv2.resize(luma_of(name), (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        luma = np.clip(luma + np.random.default_rng(seed).normal(0, 3, luma.shape), 0, 255).astype(np.uint8)
        found, (digits, quality) = pdq(luma), by_definition(luma)
        assert distance(found.digits, digits) <= 2 and abs(found.quality - quality) <= 1


def test_the_hash_of_a_large_picture_follows_the_definition() -> None:
    luma = np.asarray(cv2.resize(luma_of(FIRST), (2_050, 600), interpolation=cv2.INTER_CUBIC), np.uint8)
    assert distance(pdq(luma).digits, by_definition(luma)[0]) <= 4


def test_plain_and_tiny_pictures_have_a_zero_hash_of_quality_0() -> None:
    for shape in [(100, 77), (1, 1), (4, 900), (700, 3), (5, 5), (256, 256)]:
        for value in (0, 1, 127, 255):
            assert pdq(np.full(shape, value, np.uint8)) == ("0" * 64, 0)
    noise = np.random.default_rng(0).integers(0, 256, (4, 300)).astype(np.uint8)
    assert pdq(noise) == ("0" * 64, 0)


def encoded(picture: Pixels) -> Pixels:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 1), np.uint8)


def halved(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    return np.asarray(cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA), np.uint8)


def cut(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    return picture[height // 100 : height - height // 100, width // 100 : width - width // 100]


@pytest.mark.parametrize(
    ("change", "by_phash_4", "by_phash_8", "by_pdq_31"),
    [
        (encoded, 1.0, 1.0, 1.0),
        (lambda picture: encoded(halved(picture)), 1.0, 1.0, 0.95),
        (cut, 0.85, 1.0, 0.85),
        (lambda picture: np.ascontiguousarray(picture[:, ::-1]), 0.0, 0.0, 0.0),
    ],
    ids=["quality 50", "half the size, quality 50", "1 % less at each edge", "mirrored"],
)
def test_changed_photographs_are_found_as_often_as_documented(
    change: Any, by_phash_4: float, by_phash_8: float, by_pdq_31: float
) -> None:
    """The bounds are loose because there are so few photographs. The guide to select has the shares for 437."""
    bits = []
    for path in sorted((PAIRS / "coco").rglob("*.jpg"))[::8]:
        picture = np.asarray(cv2.imread(str(path)), np.uint8)
        changed = change(picture)
        pairs = [(phash(each), pdq(np.asarray(cv2.cvtColor(each, cv2.COLOR_BGR2GRAY), np.uint8)).digits)
                 for each in (picture, changed)]  # fmt: skip
        bits.append([distance(one, other) for one, other in zip(*pairs, strict=True)])
    by_phash, by_pdq = np.array(bits).T
    assert len(bits) > 20
    found = [(by_phash <= 4).mean(), (by_phash <= 8).mean(), (by_pdq <= 31).mean()]
    assert all(share >= least for share, least in zip(found, (by_phash_4, by_phash_8, by_pdq_31), strict=True))
    assert by_phash_8 or not any(found)  # neither hash finds mirrored pictures
