"""Configures all tests."""

import atexit
import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""Otherwise, torch's threads spin while they wait for each other. If several processes share the cores, that triples
the CPU time and slows down the other tests. Must be set before torch is loaded."""

settings.register_profile("pairmill", deadline=None, max_examples=30)  # a slow machine must not fail a test
settings.register_profile(  # for bench.doors, which runs every property with far more examples
    "doors",
    deadline=None,
    max_examples=int(os.environ.get("DOORS_EXAMPLES", "1000")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("few", deadline=None, max_examples=20)  # for the other Pythons of make test-unit-all
settings.load_profile("pairmill")

gc.disable()
if "PYTEST_XDIST_WORKER" in os.environ:
    # Registered first, so called after all other handlers. Python would take seconds to free every module and object.
    atexit.register(os._exit, 0)
else:
    atexit.register(gc.unfreeze)  # otherwise, nanobind would report all of its objects as leaks


def pytest_collection_finish() -> None:
    """Collect no garbage while modules are imported, and exempt the objects that they created from later collections.
    Otherwise, these collections would take a tenth of the tests' time."""
    gc.freeze()
    gc.enable()


MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS
"""Pillow's default limit."""


@pytest.fixture(autouse=True)
def pillow_limit() -> Iterator[None]:
    """Undo a process-wide change that ImageProcessor makes: with its limit, plain Pillow warns about large pictures."""
    yield
    Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
