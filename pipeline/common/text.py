"""Formats text for people: numbers with nouns, and untrusted text for columns such as `status_detail`."""

import os
import re
import shlex
import traceback
from contextlib import suppress
from textwrap import fill
from typing import TextIO

DETAIL_CHARS = 200
"""Maximum length of `status_detail`."""

_QUOTED = r"""(?:'[^']*'|"'")+"""
"""A word that `shlex.quote` has quoted, with spaces and punctuation."""
_WHOLE = re.compile(rf"`[^`]+`|\bpairmill (?:{_QUOTED}|(?!\. )[^`,;()])+|(?<!\w){_QUOTED}(?!\w)")
"""Commands and quoted words, which stay whole when their line is wrapped."""
_USUAL_COLUMNS = 80
_JOINT = "\0"
"""Stands for the spaces of what stays whole while its line is wrapped."""

_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def counted(number: int, noun: str) -> str:
    """The number with its noun: `1 shard`, `2,048 shards`."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def pairmill_command(*words: str) -> str:
    """A `pairmill` command for people to paste into a shell. Quotes paths with spaces, for example."""
    return shlex.join(["pairmill", *words])


def columns_of(stream: TextIO) -> int:
    """The width of the terminal that a stream writes to, or COLUMNS if it is set. 80 if neither is known.

    shutil.get_terminal_size knows only the terminal of stdout, which may be a file while stderr is a terminal.
    """
    columns = 0
    with suppress(KeyError, ValueError):
        columns = int(os.environ["COLUMNS"])
    if columns <= 0:
        with suppress(OSError, ValueError):  # not a terminal, or closed
            columns = os.get_terminal_size(stream.fileno()).columns
    return columns if columns > 0 else _USUAL_COLUMNS


def wrapped(text: str, width: int) -> str:
    """The text with its long lines wrapped at spaces. Commands and words, such as paths, stay whole, so that they can
    be copied."""
    width = max(1, width)
    return "\n".join(line if len(line) <= width else _wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    joined = _WHOLE.sub(lambda found: found.group().replace(" ", _JOINT), line)
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    lines = fill(joined, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace(_JOINT, " ")


def clean_text(text: str | None, max_chars: int = DETAIL_CHARS) -> str | None:
    """The text on one line, truncated, without control characters or surrogates. None if nothing is left."""
    if not text:
        return None
    return _UNPRINTABLE.sub(" ", text[: 4 * max_chars]).strip()[:max_chars] or None


def message_of(error: BaseException) -> str:
    """The message of an exception, which may be of a user's class that fails to make one."""
    try:
        return str(error)
    except (Exception, SystemExit) as problem:
        return f"its message cannot be read ({type(problem).__name__})"


def trace_of(error: BaseException) -> str:
    """A traceback whose last line contains the full type of the exception and its whole message."""
    kind = type(error)
    lines = traceback.format_exception(error)
    return "".join(lines) + f"{kind.__module__}.{kind.__qualname__}: {' '.join(message_of(error).split())}\n"


def last_line(error: str) -> str:
    """The summary in the last line of a `trace_of` text."""
    return (error.strip().splitlines() or ["no message"])[-1]


def describe(error: BaseException) -> str:
    """`Type: message` of an exception, for `status_detail`."""
    return clean_text(f"{type(error).__name__}: {message_of(error)}") or type(error).__name__
