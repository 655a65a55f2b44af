"""Compares a mixture made on Ray with one made in a plain loop."""

from pathlib import Path

import pytest

from tests.unit.select.test_law_mixture import mixed, uids, write


def test_a_mixture_is_the_same_on_ray_and_in_a_plain_loop(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, 150)
    expected = uids(folder, mixed(folder, "mix"), "mix")
    monkeypatch.setattr("pairmill.jobs.mix.ROWS_FOR_RAY", 0)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 600)
    assert uids(folder, mixed(folder, "mix"), "mix") == expected
