"""Mutated pictures: whatever the bytes, the answer is a Status. The long run is `python -m bench.fuzz`."""

import pytest

from bench.fuzz import SLOW_S, decode_chunk, seeds_from
from pairmill.schemas.status import Status
from tests.unit.test_images_awkward import FOLDER


@pytest.mark.parametrize("seed", range(10))
def test_five_hundred_mutated_pictures_each_get_a_status(seed: int) -> None:
    found, slowest = decode_chunk(seeds_from(FOLDER if FOLDER.is_dir() else None), seed, 500)
    assert found.total() == 500
    assert set(found) <= {status.value for status in Status}, found
    assert {"ok", "image_corrupt"} <= set(found)
    assert slowest < SLOW_S
