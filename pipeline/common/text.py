"""Formats text for people: numbers with nouns, and untrusted text for columns such as `status_detail`."""

import re
import shlex
import traceback

DETAIL_CHARS = 200
"""Maximum length of `status_detail`."""

_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def counted(number: float, noun: str) -> str:
    """The number with its noun: `1 shard`, `2,048 shards`, `3 entries`, `0.5 CPUs`."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:,g}"
    if number == 1:
        return f"{shown} {noun}"
    if re.search("[^aeiou]y$", noun):
        return f"{shown} {noun[:-1]}ies"
    return f"{shown} {noun}{'es' if noun.endswith(('s', 'ch', 'sh')) else 's'}"


def pairmill_command(*words: str) -> str:
    """A `pairmill` command for people to paste into a shell. Quotes paths with spaces, for example."""
    return shlex.join(["pairmill", *words])


def shown_path(path: str) -> str:
    """A path in a sentence, for people to paste into a shell: in quotes if it has spaces, for example."""
    return shlex.quote(path)


def clean_text(text: str | None, max_chars: int = DETAIL_CHARS) -> str | None:
    """The text on one line, truncated, without control characters or surrogates. None if nothing is left."""
    if not text:
        return None
    return _UNPRINTABLE.sub(" ", text[: 4 * max_chars]).strip()[:max_chars] or None


def utf8_bytes(text: str) -> bytes:
    """The bytes that a text was decoded from (PEP 383). A lone surrogate, such as `\\ud800` in JSON, becomes invalid
    UTF-8, which later steps detect or replace."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


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
