"""Tests what happens if a local Ray instance does not start."""

from pathlib import Path

import pytest

from pairmill.jobs.cluster import session
from pairmill.jobs.cluster.ray_token import SessionError


def test_ray_is_started_again_if_it_fails_to_start_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    failures = [Exception("The current node timed out during startup.")]

    def start() -> None:
        if failures:
            raise failures.pop()

    session._twice(start)
    assert not failures


def test_ray_failing_to_start_twice_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)

    def start() -> None:
        raise Exception("The current node timed out during startup.")

    with pytest.raises(SessionError, match=r"Ray failed to start twice: .*timed out.*overloaded"):
        session._twice(start)


def test_ray_is_not_started_again_if_a_file_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    starts = []

    def start() -> None:
        starts.append(1)
        Path("/sys/ray").mkdir()

    with pytest.raises(SessionError, match=r"^Ray did not start: /sys/ray: .+; set RAY_TMPDIR to a folder that"):
        session._twice(start)
    assert len(starts) == 1
