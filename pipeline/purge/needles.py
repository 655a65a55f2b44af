"""The values that a search for purged rows looks for, and how it finds them in text of any kind."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import pyarrow as pa

from pairmill.pipeline.image.pdq import MATCH_DISTANCE
from pairmill.pipeline.known.keys import PDQ
from pairmill.pipeline.purge.keys import canonical_url, digest
from pairmill.pipeline.purge.lists import Values
from pairmill.pipeline.purge.names import hosts_of_urls, named_hosts, named_urls
from pairmill.pipeline.purge.notations import readings
from pairmill.pipeline.purge.pdq import PdqIndex

_HEX = r"(?<![0-9a-fA-F])(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"
_HEX_RUN = re.compile(_HEX + r"(?![0-9a-fA-F])")
_WORD = re.compile(r"[^\s\"'<>^`{|}\x00-\x20\x7f]+")
_PLAIN_URL = re.compile(r"[^\s\"'<>\\^`{|}]*")
_ANY_URL = re.compile(r"[^\x00-\x20\x7f]+")
"""Blanks are excluded: a URL with blanks cannot be requested."""
_ESCAPE_IN_URL = re.compile(r"\\+(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[/&_%#=?~-])")
"""An escape that can continue a URL. Other backslashes end it."""
_UNREADABLE = "\ufffd"
"""Replaces escapes in URLs. No listed URL contains it, so what precedes an escape does not count as a whole URL."""


@dataclass(frozen=True)
class Needles:
    """The listed values, and the ledger's digests of the withdrawn rows."""

    values: Values
    row_ids: frozenset[str] = frozenset()
    uids: frozenset[bytes] = frozenset()
    captions: frozenset[bytes] = frozenset()
    pictures: frozenset[bytes] = frozenset()
    vectors: frozenset[bytes] = frozenset()

    @cached_property
    def longest(self) -> int:
        """The number of characters in the longest listed value."""
        return max((len(value) for listed in self.values.values() for value in listed), default=0)

    def in_text(self, text: str) -> Iterator[str]:
        """The listed values, and the uids of withdrawn rows, that occur as words in a text in any notation."""
        for reading in chain([text], readings(text)):
            yield from self._in_words(reading)

    def _in_words(self, text: str) -> Iterator[str]:
        digits = {kind: self.values.get(kind, frozenset()) for kind in ("uid", "sha256", "pdq")}
        if any(digits.values()) or self.uids:
            runs = {run.replace("-", "").lower() for run in _HEX_RUN.findall(text)}
            for kind, listed in digits.items():
                yield from (f"{kind} {value}" for value in runs & listed)
            uids = (run for run in runs - digits["uid"] if len(run) == 32) if self.uids else ()
            withdrawn = (run for run in uids if digest("uid", run.encode()) in self.uids)
            yield from (f"the withdrawn row with uid {uid}" for uid in withdrawn)
        if hosts := self.values.get("host"):
            yield from (f"host {name}" for name in named_hosts(text) & hosts)
        if self._has_urls:
            for word in set(_WORD.findall(text)):
                if "//" in word:
                    yield from self._urls(named_urls(_ESCAPE_IN_URL.sub(_UNREADABLE, word)))
                    yield from self._hosts(named_urls(word))

    def in_cells(self, cells: Iterable[str]) -> Iterator[str]:
        """The listed values that match a cell consisting of one URL, even if `in_text` cannot tell where it ends."""
        if self._has_urls:
            urls = self.values.get("url", frozenset())
            for cell in cells:
                if (stripped := cell.strip()) in urls:
                    yield f"url {stripped}"
                elif stripped[:4].lower() == "http" and _is_odd_url(stripped):
                    yield from self._urls([stripped])
                    yield from self._hosts([stripped])

    def near_pdq(self, rows: pa.Table) -> Iterator[str]:
        """The hashes of rows that are near a listed hash."""
        if self.values.get("pdq"):
            near = rows[PDQ].filter(pa.array(self._pdq.has_near(rows)))
            for value in near.unique().to_pylist():
                yield f"pdq {value}, within {MATCH_DISTANCE} bits of a listed hash"

    def prepared(self) -> "Needles":
        """These needles with their index built, so that workers do not each have to build one."""
        _ = self._pdq
        return self

    @cached_property
    def _pdq(self) -> PdqIndex:
        return PdqIndex.of(self.values.get("pdq", ()))

    @property
    def _has_urls(self) -> bool:
        return bool(self.values.get("url") or self.values.get("host"))

    def _urls(self, urls: Iterable[str]) -> Iterator[str]:
        if listed := self.values.get("url"):
            yield from (f"url {found}" for url in urls if (found := canonical_url(url)) in listed)

    def _hosts(self, urls: Iterable[str]) -> Iterator[str]:
        if hosts := self.values.get("host"):
            yield from (f"host {name}" for name in hosts_of_urls(urls) & hosts)


def _is_odd_url(text: str) -> bool:
    """Whether a URL contains characters that end a word, or has no slashes."""
    return bool(_ANY_URL.fullmatch(text)) and not ("//" in text and _PLAIN_URL.fullmatch(text))
