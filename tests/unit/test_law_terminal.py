"""Invariant: on a terminal, what commands print is wrapped to its width; elsewhere, each line stays one line.

Oracle: a pseudo-terminal of 60 columns.
"""

import ast
import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pytest

import pairmill.jobs.cli
from pairmill.jobs.cli.terminal import say, say_stopped
from pairmill.jobs.progress import ConsoleProgress

COLUMNS = 60
SENTENCE = "Stopped. Finished parts of the index are kept; run the same command again to build the others. "


def _prints(node: ast.AST) -> bool:
    """Whether the node is a call of `typer.echo` or `print` that prints a line."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("typer.echo", "print"):
        return False
    return all(each.arg != "nl" for each in node.keywords) and "json.dumps" not in ast.unparse(node)


def test_commands_print_lines_only_by_the_function_that_wraps_them() -> None:
    found = {
        path.name: [node.lineno for node in ast.walk(ast.parse(path.read_text())) if _prints(node)]
        for path in Path(pairmill.jobs.cli.__path__[0]).glob("*.py")
    }
    del found["terminal.py"], found["help.py"]  # the function itself, and the version
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_lines_contain_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """They may contain names and settings from files of other people."""
    for err in (False, True):
        say("a\x1b]0;owned\x07b\tc\nd\x9b", err=err)
    assert capsys.readouterr() == ("a?]0;owned?b\tc\nd?\n",) * 2


@pytest.mark.parametrize("redirected", ["stdout", "stderr", None])
def test_lines_are_as_wide_as_the_terminal_that_shows_them(
    redirected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if stdout, or only stderr, goes to a file."""
    monkeypatch.delenv("COLUMNS", raising=False)
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    with open(terminal, "w") as shown, open(tmp_path / "file", "w+") as file:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, file if name == redirected else shown)
        say(SENTENCE * 2)
        say_stopped(SENTENCE * 2)
        ConsoleProgress().say(SENTENCE * 2)
        shown.flush()
        lines = os.read(master, 10_000).decode().splitlines()
        file.seek(0)
        in_file = file.read().splitlines()
    os.close(master)
    assert lines and max(map(len, lines)) <= COLUMNS
    assert len(in_file) == {"stdout": 1, "stderr": 2, None: 0}[redirected]
