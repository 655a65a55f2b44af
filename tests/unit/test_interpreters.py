"""Tests how `make setup` selects Python interpreters."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci" / "interpreters"
THIS = f"python3.{sys.version_info[1]}"
NOT_SELECTED = '#!/bin/sh\necho "pyenv: ${0##*/}: command not found" >&2\nexit 127\n'


def found(home: Path, path: Path) -> list[str]:
    environment = {"HOME": str(home), "PATH": f"{path}:{os.defpath}"}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith((str(home), str(Path(sys.executable).parent)))]


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_shim_of_an_unselected_version_is_skipped_and_the_folder_of_pyenv_is_searched(tmp_path: Path) -> None:
    home, shims = tmp_path / "home", tmp_path / "shims"
    for minor in (11, 12, 13, 14):
        put(shims / f"python3.{minor}", NOT_SELECTED)
    put(shims / "python3", NOT_SELECTED)
    put(home / ".pyenv" / "versions" / f"{THIS[6:]}.99" / "bin" / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert found(home, shims) == [sys.executable]


def test_an_interpreter_that_only_claims_a_supported_version_is_skipped(tmp_path: Path) -> None:
    other = "python3.14" if THIS != "python3.14" else "python3.13"
    put(tmp_path / "bin" / other, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert found(tmp_path / "home", tmp_path / "bin") == []
    put(tmp_path / "bin" / THIS, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    assert found(tmp_path / "home", tmp_path / "bin") == [sys.executable]
