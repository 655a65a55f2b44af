"""Invariant: on a terminal, what commands print is wrapped to its width; elsewhere, each line stays one line.

Oracle: a pseudo-terminal of 60 columns.
"""

import ast
import fcntl
import pty
import re
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest

import pairmill.jobs.cli
from pairmill.jobs.cli.main import main
from pairmill.jobs.cli.terminal import say, say_as_is, say_stopped
from pairmill.jobs.progress import ConsoleProgress
from pairmill.pipeline.common.terminal_text import cells
from pairmill.pipeline.evaluate.page import Table

COLUMNS = 60
SENTENCE = "Stopped. Finished parts of the index are kept; run 同じコマンド again to build the others. "


def _prints(node: ast.AST) -> bool:
    """Whether the node is a call of `typer.echo` or `print` that prints a line."""
    is_print = isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.echo", "print")
    return is_print and "json.dumps" not in ast.unparse(node)


def _bare_paths(node: ast.AST) -> list[str]:
    """The paths that a sentence contains without quotes."""
    if not isinstance(node, ast.JoinedStr):
        return []
    if not any(isinstance(part, ast.Constant) and " " in str(part.value) for part in node.values):
        return []
    values = [ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
    return [value for value in values if re.search(r"\b(output|root|dataset|path|folder)$", value)]


def test_commands_print_lines_only_by_the_function_that_wraps_them() -> None:
    found = {
        path.name: [node.lineno for node in ast.walk(ast.parse(path.read_text())) if _prints(node)]
        for path in Path(pairmill.jobs.cli.__path__[0]).glob("*.py")
    }
    del found["terminal.py"], found["help.py"]  # the function itself, and the version
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_paths_in_sentences_are_quoted_for_a_shell() -> None:
    found = [
        f"{path.name}:{node.lineno}: {bare}"
        for path in Path(pairmill.jobs.cli.__path__[0]).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for bare in _bare_paths(node)
    ]
    assert "\n".join(found) == ""


def test_lines_contain_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """They may contain names and settings from files of other people."""
    for err in (False, True):
        say("a\x1b]0;owned\x07b\tc\nd\x9b\u202egpj.exe", err=err)
    assert capsys.readouterr() == ("a?]0;owned?b\tc\nd??gpj.exe\n",) * 2
    say_as_is("\x1b[36mray\x1b[0m\x1b]0;owned\x07\r\n10%\r20%\n")
    assert capsys.readouterr().out == "ray?]0;owned?\n10%\n20%\n"


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, list[str]]]:
    """Yields a terminal of 60 columns, and the lines that it shows at the end."""
    monkeypatch.delenv("COLUMNS", raising=False)
    master, device = pty.openpty()
    fcntl.ioctl(device, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    lines, data = list[str](), b""
    with open(device, "w") as shown:
        yield shown, lines
    with suppress(OSError), open(master, "rb", buffering=0) as screen:
        while part := screen.read(10_000):
            data += part
    lines += data.decode().splitlines()


@pytest.mark.parametrize("redirected", ["stdout", "stderr", None])
def test_lines_are_as_wide_as_the_terminal_that_shows_them(
    redirected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if stdout, or only stderr, goes to a file."""
    with terminal(monkeypatch) as (shown, lines), open(tmp_path / "file", "w+") as file:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, file if name == redirected else shown)
        say(SENTENCE * 2)
        say_stopped(SENTENCE * 2)
        ConsoleProgress().say(SENTENCE * 2)
        file.seek(0)
        in_file = file.read().splitlines()
    assert lines and max(map(cells, lines)) <= COLUMNS
    assert len(in_file) == {"stdout": 1, "stderr": 2, None: 0}[redirected]


def test_a_path_with_spaces_that_was_given_to_the_command_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors from anywhere in pairmill name it without quotes."""
    path = "/data/my pictures/of all cats and dogs"
    monkeypatch.setattr(
        sys, "argv", ["pairmill", "status", "/data/my pictures", f"--out={path}/", "--step", "where: a / b"]
    )
    with terminal(monkeypatch) as (shown, lines):
        monkeypatch.setattr(sys, "stderr", shown)
        say(f"pairmill: {path}/pairs cannot be read, so the rows of {path} cannot be counted", err=True)
    assert max(map(cells, lines)) <= COLUMNS
    assert sum(line.count(path) for line in lines) == 2


def test_usage_errors_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pairmill", "select", "out", "--mix", "a=1", "--refresh"])
    with terminal(monkeypatch) as (shown, lines), pytest.raises(SystemExit, match="2"):
        monkeypatch.setattr(sys, "stderr", shown)
        main()
    text = " ".join(line.strip() for line in lines)
    assert "Usage: pairmill select" in text and "can only be combined with --count, --dry-run, --overwrite" in text
    assert max(map(cells, lines)) <= COLUMNS


def test_tables_fit_the_terminal() -> None:
    """Numbers stay in their columns, whatever names are beside them."""
    share = "100.0 % (99.1 to 100.0)"
    names = ("cat", "赤い円の写真とその長い長い説明文", "a very long name of a class that nobody would give")
    rows = [[name, "10,000", share, share] for name in names]
    lines = Table("Thresholds", ["class", "kept", "precision", "recall"], rows).lines(20, COLUMNS)
    assert max(map(cells, lines)) <= COLUMNS
    assert {cells(line.split("10,000")[0]) for line in lines if "10,000" in line} == {lines[1].index("kept") - 2}
    wide = Table("Thresholds", ["class", "kept", "precision", "recall"], rows).lines(20, 200)
    assert len(wide) == 2 + len(rows)
