"""Decides which rows of a table the ledger withdraws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.purge.keys import canonical_url, digest, domains, urls_in
from pairmill.pipeline.purge.ledger import Ledger
from pairmill.pipeline.purge.pdq import Words, is_near, words_of
from pairmill.pipeline.rules.url_parser import parse_url
from pairmill.schemas.purge import ListKind

Mask = npt.NDArray[np.bool_]

URL_COLUMNS = ("url", "final_url")
"""A row belongs to a URL or host if it was asked there, or answered from there."""
_PDQ = "pdq"
_ENCODING = ("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Matcher:
    """Finds withdrawn rows. Plain values, so that it can be sent to workers."""

    ledger: Ledger
    by_uid_only: bool = False
    """Look at nothing but the uids."""

    @property
    def has_urls(self) -> bool:
        """Whether URLs decide."""
        asked = self.ledger.asked
        return not self.by_uid_only and bool(len(asked["url"]) or len(asked["host"]))

    @property
    def columns(self) -> frozenset[str]:
        """The columns that `mask` reads, if the table has them."""
        names = {"uid"} if len(self.ledger.uids) else set()
        if self.has_urls:
            names |= {*URL_COLUMNS, "status_detail"}
        if not self.by_uid_only:
            names |= {"sha256"} if len(self.ledger.asked["sha256"]) else set()
            names |= {_PDQ} if len(self.ledger.asked["pdq"]) else set()
        return frozenset(names)

    def mask(self, table: pa.Table) -> Mask:
        """For each row of the table, whether it is withdrawn."""
        found, names = np.zeros(table.num_rows, np.bool_), set(table.column_names) & self.columns
        if not table.num_rows:
            return found
        if "uid" in names:
            found |= self._listed(table["uid"], "uid")
        if "sha256" in names:
            found |= self._listed(table["sha256"], "sha256")
        for name in URL_COLUMNS:
            if name in names:
                found |= _where(table[name], self.withdrawn_urls)
        if "status_detail" in names:
            found |= _where(table["status_detail"], self._withdrawn_messages)
        if _PDQ in names:
            found |= is_near(table[_PDQ], self._pdq())
        return found

    def withdrawn_urls(self, urls: Sequence[str]) -> Mask:
        """For each URL, whether it is withdrawn, or its host, or a parent domain; [urls]."""
        asked, found = self.ledger.asked, np.zeros(len(urls), np.bool_)
        if len(asked["url"]):
            found |= asked["url"].contains([digest("url", canonical_url(url).encode(*_ENCODING)) for url in urls])
        if len(asked["host"]):
            hosts = [parse_url(url).host for url in urls]
            distinct = sorted(set(hosts) - {""})
            is_withdrawn = dict(zip(distinct, self._withdrawn_hosts(distinct).tolist(), strict=True))
            found |= np.array([is_withdrawn.get(host, False) for host in hosts], np.bool_)
        return found

    def _withdrawn_hosts(self, hosts: Sequence[str]) -> Mask:
        names = [(place, name) for place, host in enumerate(hosts) for name in domains(host)]
        hits = self.ledger.asked["host"].contains([digest("host", name.encode()) for _, name in names])
        found = np.zeros(len(hosts), np.bool_)
        found[[place for (place, _), hit in zip(names, hits.tolist(), strict=True) if hit]] = True
        return found

    def _withdrawn_messages(self, details: Sequence[str]) -> Mask:
        """For each message, whether it mentions such a URL."""
        urls = [(place, url) for place, detail in enumerate(details) if "://" in detail for url in urls_in(detail)]
        found = np.zeros(len(details), np.bool_)
        hits = self.withdrawn_urls([url for _, url in urls])
        found[[place for (place, _), hit in zip(urls, hits.tolist(), strict=True) if hit]] = True
        return found

    def _listed(self, column: pa.ChunkedArray, kind: ListKind) -> Mask:
        listed = self.ledger.uids if kind == "uid" else self.ledger.asked[kind]
        return listed.contains([None if text is None else digest(kind, text.encode()) for text in column.to_pylist()])

    def _pdq(self) -> Words:
        return words_of([bytes(each).ljust(32, b"\0") for each in self.ledger.asked["pdq"].entries.tolist()])


def _where(column: pa.ChunkedArray, holds: Callable[[Sequence[str]], Mask]) -> Mask:
    """Rows whose text fulfills a condition, which is evaluated once per distinct text."""
    texts = column.unique().drop_null()
    matching = texts.filter(pa.array(holds(texts.to_pylist())))
    mask: Mask = pc.is_in(column, value_set=matching).to_numpy()
    return mask
