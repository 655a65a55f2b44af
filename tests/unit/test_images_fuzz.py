"""Tests that decoding any bytes results in a Status. `python -m bench.fuzz` is a long run of the same test."""

import pytest

from pairmill.schemas.status import Status
from tests.mutated_pictures import decode_mutations, seeds_from
from tests.unit.test_images_awkward import FOLDER

SLOW_S = 20.0


@pytest.mark.parametrize("seed", range(5))
def test_five_hundred_mutated_pictures_each_get_a_status(seed: int) -> None:
    found, slowest = decode_mutations(seeds_from(FOLDER if FOLDER.is_dir() else None), seed, 500)
    assert found.total() == 500
    assert set(found) <= {status.value for status in Status}, found
    assert {"ok", "image_corrupt"} <= set(found)
    assert slowest < SLOW_S
