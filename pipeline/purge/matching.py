"""Decides which rows of a table the ledger withdraws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.known.keys import PDQ
from pairmill.pipeline.purge.keys import canonical_url, digest, domains, hosts_in, url_host, urls_in
from pairmill.pipeline.purge.ledger import Ledger
from pairmill.pipeline.purge.pdq import PDQ_COLUMNS, PdqIndex
from pairmill.schemas.purge import ListKind

Mask = npt.NDArray[np.bool_]

URL_COLUMNS = ("url", "final_url")
"""A row belongs to a URL or host if its picture was requested from there or delivered from there."""
_ENCODING = ("utf-8", "surrogatepass")


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
            found |= self._listed(table["uid"], "uid")
        if "sha256" in names:
            found |= self._listed(table["sha256"], "sha256")
        for name in URL_COLUMNS:
            if name in names:
                found |= _where(table[name], self.withdrawn_urls)
        if "status_detail" in names:
            found |= _where(table["status_detail"], self._withdrawn_messages)
        if PDQ in names:
            found |= self.pdq.has_near(table)
        return found

    def withdrawn_urls(self, urls: Sequence[str]) -> Mask:
        """For each URL, whether the URL, its host or a parent domain is withdrawn: bool [urls]."""
        asked, found = self.ledger.asked, np.zeros(len(urls), np.bool_)
        if len(asked["url"]):
            found |= asked["url"].contains([digest("url", canonical_url(url).encode(*_ENCODING)) for url in urls])
        if len(asked["host"]):
            hosts = [url_host(url) for url in urls]
            names = {host: list(domains(host)) for host in set(hosts)}
            is_withdrawn = _any_of(list(names.values()), self._withdrawn_hosts)
            by_host = dict(zip(names, is_withdrawn.tolist(), strict=True))
            found |= np.array([by_host[host] for host in hosts], np.bool_)
        return found

    def _withdrawn_hosts(self, names: Sequence[str]) -> Mask:
        return self.ledger.asked["host"].contains([digest("host", name.encode(*_ENCODING)) for name in names])

    def _withdrawn_messages(self, details: Sequence[str]) -> Mask:
        """For each message, whether it mentions a withdrawn URL or host."""
        found = _any_of([list(urls_in(detail)) for detail in details], self.withdrawn_urls)
        if len(self.ledger.asked["host"]):
            found |= _any_of([sorted(hosts_in(detail)) for detail in details], self._withdrawn_hosts)
        return found

    def _listed(self, column: pa.ChunkedArray, kind: ListKind) -> Mask:
        listed = self.ledger.uids if kind == "uid" else self.ledger.asked[kind]
        return listed.contains([None if text is None else digest(kind, text.encode()) for text in column.to_pylist()])


def _any_of(texts: Sequence[Sequence[str]], holds: Callable[[Sequence[str]], Mask]) -> Mask:
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
