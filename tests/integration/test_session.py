"""Tests what happens if a local Ray instance does not start."""

from pathlib import Path

import pytest

from pairmill.jobs.cluster import session
from pairmill.jobs.cluster.ray_token import SessionError


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


def test_a_file_that_cannot_be_written_is_no_reason_to_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    starts = []

    def start() -> None:
        starts.append(1)
        Path("/sys/ray").mkdir()

    with pytest.raises(SessionError, match=r"^Ray did not start: /sys/ray: .+; set RAY_TMPDIR to a folder that"):
        session._twice(start)
    assert len(starts) == 1
