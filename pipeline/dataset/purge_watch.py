"""Notices a purge that begins while a command reads the dataset, whose result would keep what was withdrawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.withdrawn import ledger_files, refuse_unfinished_purge
from pairmill.schemas.errors import JobError


@dataclass(frozen=True)
class PurgeWatch:
    """The requests of purges that were there at the start."""

    store: Store
    requests: tuple[int, ...]

    @classmethod
    def start(cls, store: Store) -> "PurgeWatch":
        """Raises JobError if a purge is not finished."""
        store.check_access()
        watch = cls(store, tuple(ledger_files(store)["request"]))
        refuse_unfinished_purge(store)
        return watch

    def check(self) -> None:
        """Raise JobError if a purge has begun since."""
        if tuple(ledger_files(self.store)["request"]) != self.requests:
            raise JobError(f"{self.store.root}: a purge has begun meanwhile; run the command again when it is finished")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an error about files that such a purge has deleted into that JobError."""
        try:
            yield
        except FileNotFoundError:
            self.check()
            raise
