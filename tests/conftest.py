"""Configures all tests."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("pairmill", deadline=None)  # a slow machine must not fail a test
settings.register_profile(  # for bench.doors
    "doors",
    deadline=None,
    max_examples=int(os.environ.get("DOORS_EXAMPLES", "1000")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pairmill")
