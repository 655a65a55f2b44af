"""Settings of all tests."""

from hypothesis import settings

settings.register_profile("pairmill", deadline=None)  # a slow machine is not a wrong answer
settings.load_profile("pairmill")
