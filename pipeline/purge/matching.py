"""Decides which rows of a table the ledger withdraws."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.known.keys import PDQ
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import digest
from pairmill.pipeline.purge.ledger import Ledger
from pairmill.pipeline.purge.names import Names, exact_hosts, exact_urls
from pairmill.pipeline.purge.pdq import PDQ_COLUMNS, PdqIndex
from pairmill.schemas.purge import ListKind

Mask = npt.NDArray[np.bool_]

URL_COLUMNS = ("url", "final_url")
"""A row belongs to a URL or host if its picture was requested from there or delivered from there, even through a proxy
or an archive, whose URLs name theirs."""
_ENCODING = ("utf-8", "surrogatepass")
_TEXTS = 64
"""Number of texts that are compared at a time."""
_Compared: TypeAlias = tuple[ListKind, DigestSet, Sequence[set[str]]]
"""(kind, listed values, the values of each text)."""


@dataclass(frozen=True)
class Matcher:
    """Finds withdrawn rows. Contains only plain values, so that it can be sent to workers."""

    ledger: Ledger
    by_uid_only: bool = False
    """Whether to compare only the uids."""

    @property
    def has_urls(self) -> bool:
        """Whether URLs are compared."""
        asked = self.ledger.asked
        return not self.by_uid_only and bool(len(asked["url"]) or len(asked["host"]))

    @property
    def has_pdq(self) -> bool:
        """Whether PDQ hashes are compared."""
        return not self.by_uid_only and bool(len(self.ledger.asked["pdq"]))

    @property
    def columns(self) -> frozenset[str]:
        """The columns that `mask` reads, if the table has them."""
        names = {"uid"} if len(self.ledger.uids) else set()
        if self.has_urls:
            names |= {*URL_COLUMNS, "status_detail"}
        if not self.by_uid_only:
            names |= {"sha256"} if len(self.ledger.asked["sha256"]) else set()
        if self.has_pdq:
            names |= PDQ_COLUMNS
        return frozenset(names)

    @cached_property
    def pdq(self) -> PdqIndex:
        """The index of the listed PDQ hashes."""
        return PdqIndex.of(bytes(each).ljust(32, b"\0").hex() for each in self.ledger.asked["pdq"].entries.tolist())

    def prepared(self) -> "Matcher":
        """This matcher with its index built, so that workers do not each have to build one."""
        if self.has_pdq:
            _ = self.pdq
        return self

    def mask(self, table: pa.Table) -> Mask:
        """For each row of the table, whether it is withdrawn."""
        found, names = np.zeros(table.num_rows, np.bool_), set(table.column_names) & self.columns
        if not table.num_rows:
            return found
        if "uid" in names:
            found |= _contains(self.ledger.uids, "uid", table["uid"].to_pylist())
        if "sha256" in names:
            found |= _contains(self.ledger.asked["sha256"], "sha256", table["sha256"].to_pylist())
        for name in URL_COLUMNS:
            if name in names:
                found |= _where(table[name], self.withdrawn_urls)
        if "status_detail" in names:
            found |= _where(table["status_detail"], self._withdrawn_messages)
        if PDQ in names:
            found |= self.pdq.has_near(table)
        return found

    def matched(self, rows: pa.Table) -> DigestSet:
        """The hashes of the listed uids, URLs, hosts and digests that these withdrawn rows have. PDQ hashes are not
        looked for: lists of them name pictures of all kinds of sources, so most match nothing."""
        found, names = list[bytes](), set(rows.column_names) & self.columns
        if "uid" in names:
            found += _listed_among(self.ledger.uids, "uid", rows["uid"].drop_null().to_pylist())
        if "sha256" in names:
            found += _listed_among(self.ledger.asked["sha256"], "sha256", rows["sha256"].drop_null().to_pylist())
        for name in names & {*URL_COLUMNS, "status_detail"}:
            for _, kind, listed, values in self._named(rows[name].drop_null().to_pylist(), name in URL_COLUMNS):
                found += _listed_among(listed, kind, {value for each in values for value in each})
        return DigestSet.of(found)

    def withdrawn_urls(self, urls: Sequence[str]) -> Mask:
        """For each URL, whether the URL, its host or a parent domain is withdrawn, or it names such a URL or host, as
        the URL of a proxy does: bool [urls]."""
        return self._any_named(urls, are_urls=True)

    def _withdrawn_messages(self, details: Sequence[str]) -> Mask:
        """For each message, whether it names a withdrawn URL or host."""
        return self._any_named(details, are_urls=False)

    def _any_named(self, texts: Sequence[str], are_urls: bool) -> Mask:
        found = np.zeros(len(texts), np.bool_)
        for rows, kind, listed, values in self._named(texts, are_urls):
            found[rows] |= _any_of(values, partial(_contains, listed, kind))
        return found

    def _named(self, texts: Sequence[str], are_urls: bool) -> Iterator[tuple[slice, *_Compared]]:
        """Like `_named_in`, for a few texts at a time, because each can name many URLs. The slice says for which."""
        for start in range(0, len(texts), _TEXTS):
            rows = slice(start, start + _TEXTS)
            for each in self._named_in(texts[rows], are_urls):
                yield rows, *each

    def _named_in(self, texts: Sequence[str], are_urls: bool) -> Iterator[_Compared]:
        """For each way of comparing."""
        asked, named = self.ledger.asked, self.ledger.named
        if len(asked["url"]) > len(named["url"]):
            yield "url", asked["url"], [exact_urls(text, are_urls) for text in texts]
        if len(asked["host"]) > len(named["host"]):
            yield "host", asked["host"], [exact_hosts(text, are_urls) for text in texts]
        names = [Names.of(text, are_urls) for text in texts] if len(named["url"]) or len(named["host"]) else []
        if len(named["url"]):
            yield "url", named["url"], [each.canonical_urls() for each in names]
        if len(named["host"]):
            yield "host", named["host"], [each.hosts() for each in names]


def _contains(listed: DigestSet, kind: ListKind, values: Sequence[str | None]) -> Mask:
    return listed.contains([None if each is None else digest(kind, each.encode(*_ENCODING)) for each in values])


def _listed_among(listed: DigestSet, kind: ListKind, values: Collection[str]) -> list[bytes]:
    every = list(values)
    return [digest(kind, every[place].encode(*_ENCODING)) for place in np.flatnonzero(_contains(listed, kind, every))]


def _any_of(texts: Sequence[Collection[str]], holds: Callable[[Sequence[str]], Mask]) -> Mask:
    """For each list of strings, whether a condition holds for at least one of them."""
    hits = holds([text for each in texts for text in each])
    ends = np.cumsum([0, *map(len, texts)])
    totals = np.concatenate([[0], np.cumsum(hits)])
    found: Mask = totals[ends[1:]] > totals[ends[:-1]]
    return found


def _where(column: pa.ChunkedArray, holds: Callable[[Sequence[str]], Mask]) -> Mask:
    """Whether the text of each row meets a condition, which is evaluated once per distinct text."""
    texts = column.unique().drop_null()
    matching = texts.filter(pa.array(holds(texts.to_pylist())))
    mask: Mask = pc.is_in(column, value_set=matching).to_numpy()
    return mask
