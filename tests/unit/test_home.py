"""Tests an unwritable home folder: where it is needed, one line says what to set."""

import os
import sys
from pathlib import Path

import pytest

from pairmill.jobs.cli.terminal import stdout_errors
from pairmill.jobs.cluster.ray_token import SessionError, check_token_folder, user_token

REMEDY = "set HOME to a folder that you can write to"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_the_home_folder_is_needed_only_if_ray_must_store_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.setenv("HOME", "/sys/home")
    for name, value in (
        ("RAY_AUTH_MODE", "disabled"),
        ("RAY_AUTH_TOKEN", "abc"),
        ("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token")),
    ):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            check_token_folder()
    with pytest.raises(SessionError, match=rf"^/sys/home: .*; {REMEDY}$"):
        check_token_folder()
    monkeypatch.setenv("HOME", str(tmp_path / "new"))
    check_token_folder()
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new/.ray"]
    assert user_token() is None
    (tmp_path / "new/.ray/auth_token").write_text("mine\n")
    assert user_token() == "mine"


@pytest.mark.parametrize("flag", [True, False])
def test_a_failed_installation_of_completion_is_reported_in_one_line(
    flag: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pairmill", *(["--install-completion"] if flag else [])])
    with pytest.raises(SystemExit if flag else FileNotFoundError), stdout_errors():
        os.mkdir("/proc/home")  # noqa: PTH102
    assert capfd.readouterr().err.count("\n") == (1 if flag else 0)
