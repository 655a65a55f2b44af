"""Fits text to a terminal: measures it in cells, wraps its lines, and removes what would control the terminal."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

PLAIN_COLUMNS = 200
"""Width of tables and progress lines that no terminal shows."""
_USUAL_COLUMNS = 80

_QUOTED = r"""(?:'[^']*'|"'")+"""
"""A word that `shlex.quote` has quoted, with spaces and punctuation."""
_WHOLE = rf"`[^`]+`|\bpairmill (?:{_QUOTED}|(?!\. )[^`,;()])+|(?<!\w){_QUOTED}(?!\w)"
"""Commands and quoted words, which stay whole when their line is wrapped."""

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, other line ends, and characters that reverse the order of the text after them."""


def cells(text: str) -> int:
    """The width of the text on a terminal. Chinese characters and emoji take two cells, combining characters none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int, at_left: bool = False) -> str:
    """The text with spaces after it, or before it, to fill `width` cells."""
    spaces = " " * (width - cells(text))
    return spaces + text if at_left else text + spaces


def without_controls(text: str) -> str:
    """The text with its lines and tabs, without colors, and with `?` for every other control character. File names,
    columns and logs come from other people, who must not control the terminal."""
    return _CONTROLS.sub("?", _COLORS.sub("", text))


def columns_of(stream: TextIO | None) -> int:
    """The width of the terminal that a stream writes to, or COLUMNS if it is set. 80 if neither is known.

    shutil.get_terminal_size knows only the terminal of stdout, which may be a file while stderr is a terminal.
    """
    columns = 0
    with suppress(KeyError, ValueError):
        columns = int(os.environ["COLUMNS"])
    if columns <= 0 and stream is not None:  # None: Python started without it
        with suppress(OSError, ValueError):  # not a terminal, or closed
            columns = os.get_terminal_size(stream.fileno()).columns
    return columns if columns > 0 else _USUAL_COLUMNS


def table_columns() -> int:
    """The width for tables on stdout."""
    return columns_of(sys.stdout) if sys.stdout is not None and sys.stdout.isatty() else PLAIN_COLUMNS


def wrapped(text: str, width: int) -> str:
    """The text with its long lines wrapped at spaces. Commands, quoted words and paths stay whole, so that they can be
    copied."""
    paths = sorted(_paths_with_spaces(), key=len, reverse=True)  # the longest of those that begin alike is found
    word = re.compile(f" *(?:{'|'.join([_WHOLE, *map(re.escape, paths)])}|[^ ])+")
    width = max(1, width)
    return "\n".join(_wrapped_line(line, width, word) for line in text.split("\n"))


def _wrapped_line(line: str, width: int, word: re.Pattern[str]) -> str:
    if cells(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    lines = [""]
    for found in word.findall(line):
        if lines[-1].strip() and cells(lines[-1] + found) > width:
            lines.append(indent + found.lstrip(" "))
        else:
            lines[-1] += found
    return "\n".join(lines)


def _paths_with_spaces() -> Iterator[str]:
    """The words with spaces on the command line, and the current folder if its name has spaces. Many messages contain
    one of them. Job steps, which have spaces too, are wrapped: they are not copied."""
    with suppress(OSError):  # the folder is gone
        if " " in (here := str(Path.cwd())):
            yield here
    for word in sys.argv[1:]:
        value = word.partition("=")[2] if word.startswith("--") else word
        value = value.strip(" /")
        if " " in value and ": " not in value:
            yield value
