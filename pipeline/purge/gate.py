"""Keeps withdrawn rows out of later work: growing builds, retries and embedding."""

import time

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.withdrawn import ledger_files
from pairmill.pipeline.purge.ledger import Ledger
from pairmill.pipeline.purge.matching import Matcher
from pairmill.pipeline.purge.picture_hashes import PictureHashes
from pairmill.schemas.status import Status

CHECK_S = 10.0
"""How often a stage checks for new requests. The commit stage checks before each shard."""


class Gate:
    """Sets the status `withdrawn` for rows that the ledger of an output folder withdraws. Thread-safe."""

    def __init__(self, store: Store, hashes: PictureHashes, check_s: float = CHECK_S) -> None:
        """`hashes`: computes the PDQ hashes of pairs without one, if the ledger has any to compare them with."""
        self._store, self._hashes, self._check_s = store, hashes, check_s
        self._files: dict[str, list[int]] | None = None
        self._matcher: Matcher | None = None
        self._checked_at = -float("inf")

    def __call__(self, table: pa.Table) -> pa.Table:
        """The in-flight table with the status of withdrawn rows set. Other columns stay as they are: these rows are not
        fetched, encoded or stored, and the commit stage drops them."""
        if (matcher := self._current()) is None:
            return table
        mask = matcher.mask(table)
        if matcher.has_pdq:
            mask |= self._hashes.withdrawn(matcher, table)
        if not mask.any():
            return table
        values = {
            "status": pa.scalar(Status.WITHDRAWN.value, pa.string()),
            "status_detail": pa.scalar(None, pa.string()),
        }
        for name, value in values.items():
            index = table.schema.get_field_index(name)
            column = pc.if_else(pa.array(mask), value, table[name])
            table = table.set_column(index, table.schema.field(index), column)
        return table

    def _current(self) -> Matcher | None:
        """A matcher for the newest ledger; None if nothing was ever withdrawn."""
        if time.monotonic() - self._checked_at >= self._check_s:
            files = ledger_files(self._store)
            if files != self._files:
                ledger = Ledger.load(self._store) if files["request"] else None
                self._matcher = None if ledger is None or ledger.is_empty else Matcher(ledger)
                self._files = files  # last, so that other threads never see it without its matcher
            self._checked_at = time.monotonic()
        return self._matcher
