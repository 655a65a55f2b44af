"""What a search for purged rows looks for, and how it finds it in text of any kind."""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.purge.keys import canonical_url, domains, urls_in
from pairmill.pipeline.purge.lists import Values
from pairmill.pipeline.purge.pdq import MAX_DISTANCE, is_near, words_of
from pairmill.pipeline.rules.url_parser import parse_url

_HEX = rb"(?<![0-9a-fA-F])(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"
_HEX_RUN = re.compile(_HEX + rb"(?![0-9a-fA-F])")
_URL_RUN = re.compile(rb"https?:(?:\\?/){2}[^\s\"'<>^`{|}\x00-\x20\x7f]{1,8192}", re.IGNORECASE)
"""In JSON, slashes may be written as `\\/`."""


@dataclass(frozen=True)
class Needles:
    """The values of the list, and the digests that the ledger has of the rows that went."""

    values: Values
    row_ids: frozenset[str] = frozenset()
    uids: frozenset[bytes] = frozenset()
    captions: frozenset[bytes] = frozenset()
    pictures: frozenset[bytes] = frozenset()
    vectors: frozenset[bytes] = frozenset()

    def in_bytes(self, data: bytes) -> Iterator[str]:
        """The values of the list that occur in some bytes: as text, in HTML or JSON too, or as raw bytes."""
        digits = {kind: self.values.get(kind, frozenset()) for kind in ("uid", "sha256", "pdq")}
        if any(digits.values()):
            runs = {match[0].decode().replace("-", "").lower() for match in _HEX_RUN.finditer(data)}
            for kind, listed in digits.items():
                yield from (f"{kind} {value}" for value in runs & listed)
        if self._has_urls:
            for match in {match[0] for match in _URL_RUN.finditer(data)}:
                yield from self._in_url(match.decode("utf-8", "replace"))

    def in_cells(self, cells: Iterable[str]) -> Iterator[str]:
        """The values of the list that are a whole URL, whatever characters it has."""
        if self._has_urls:
            for cell in cells:
                if cell[:4].lower() == "http":
                    yield from self._matching(cell)

    def near_pdq(self, column: pa.ChunkedArray) -> Iterator[str]:
        """Hashes of a column that are near one of the list."""
        if listed := self.values.get("pdq"):
            near = is_near(column, words_of([bytes.fromhex(value) for value in listed]))
            for value in column.filter(pa.array(near)).unique().to_pylist():
                yield f"pdq {value}, within {MAX_DISTANCE} bits of one of the list"

    @property
    def _has_urls(self) -> bool:
        return bool(self.values.get("url") or self.values.get("host"))

    def _in_url(self, text: str) -> Iterator[str]:
        for form in {text, html.unescape(text), text.replace("\\/", "/").replace("\\u0026", "&")}:
            for url in urls_in(form):
                yield from self._matching(url)

    def _matching(self, url: str) -> Iterator[str]:
        if (canonical := canonical_url(url)) in self.values.get("url", ()):
            yield f"url {canonical}"
        hosts = self.values.get("host", frozenset())
        yield from (f"host {name}" for name in domains(parse_url(url).host) if name in hosts)
