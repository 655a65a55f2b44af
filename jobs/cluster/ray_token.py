"""Finds this user's token for Ray clusters, and checks that a local Ray instance can store one. Does not import ray."""

import os
import tempfile
from pathlib import Path

from pairmill.schemas.errors import PairmillError


class SessionError(PairmillError, RuntimeError):
    """A local Ray instance could not be started, or a cluster could not be joined."""


def user_token() -> str | None:
    """This user's token, looked up where Ray looks, in the same order."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        return (Path(path) if path else Path.home() / ".ray" / "auth_token").read_text().strip() or None
    except (OSError, RuntimeError):  # no such file, or no home
        return None


def check_token_folder() -> None:
    """Raise SessionError if a local Ray instance would have to store a token, as on its first start, but cannot."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or user_token():
        return
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        raise SessionError(
            f"{getattr(error, 'filename', None) or '~/.ray'}: cannot be written to "
            f"({getattr(error, 'strerror', None) or error}), and Ray stores its token below the home folder; "
            "set HOME to a folder that you can write to"
        ) from None
