"""Tests what happens if a local Ray instance does not start."""

import pytest

from pairmill.jobs.cluster import session
from pairmill.jobs.cluster.session import SessionError


def test_a_ray_that_fails_to_start_once_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    failures = [Exception("The current node timed out during startup.")]

    def start() -> None:
        if failures:
            raise failures.pop()

    session._twice(start)
    assert not failures


def test_a_ray_that_fails_twice_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)

    def start() -> None:
        raise Exception("The current node timed out during startup.")

    with pytest.raises(SessionError, match=r"Ray did not start, twice: .*timed out.*overloaded"):
        session._twice(start)
