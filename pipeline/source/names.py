"""Finds columns and JSON keys by name.

Names are matched exactly; failing that, ignoring case and leading or trailing blanks; failing that, also treating
blanks and hyphens as underscores (`Image Link` is `image_link`).
"""

import re
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache

TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
"""Where Hugging Face's ImageFolder layout describes the pictures of a folder, and the column with their paths."""

_SEPARATORS = re.compile(r"[\s_-]+")


class Names:
    """A searchable set of names. Each name is folded once, and only if needed, because a corpus may have millions of
    JSON files."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)

    def find(self, name: str) -> str | None:
        """The stored name for `name`: an exact match, else the only match after folding, else None."""
        if name in self._names:
            return name
        plain, words = _wanted(name)
        close = self._by_plain.get(plain) or self._by_words.get(words) or ()
        return close[0] if len(close) == 1 else None

    @cached_property
    def _by_plain(self) -> dict[str, list[str]]:
        return self._folded(_plain)

    @cached_property
    def _by_words(self) -> dict[str, list[str]]:
        return self._folded(_words)

    def _folded(self, fold: Callable[[str], str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._names:
            found.setdefault(fold(name), []).append(name)
        return found


def find_column(names: Iterable[str], name: str) -> str | None:
    """The column called `name`, as `Names` finds it."""
    return Names(names).find(name)


@lru_cache
def _wanted(name: str) -> tuple[str, str]:
    """A name folded in both ways. Only a few names are looked up, and they are the same for all files."""
    return _plain(name), _words(name)


def _plain(name: str) -> str:
    return name.strip().lower()


def _words(name: str) -> str:
    """`image_link` for `Image Link`, `image-link` and the like."""
    return _SEPARATORS.sub("_", _plain(name))
