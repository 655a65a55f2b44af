"""Detects purges that begin while a command reads the dataset: the command's result could contain withdrawn rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.withdrawn import ledger_files, refuse_unfinished_purge
from pairmill.schemas.errors import JobError, PairmillError


@dataclass(frozen=True)
class PurgeWatch:
    """The purge requests that existed when a command started."""

    store: Store
    requests: tuple[int, ...]

    @classmethod
    def start(cls, store: Store) -> "PurgeWatch":
        """Record the existing requests. Raises JobError if a purge is not finished."""
        store.check_access()
        watch = cls(store, tuple(ledger_files(store)["request"]))
        refuse_unfinished_purge(store)
        return watch

    def check(self) -> None:
        """Raise JobError if a purge has begun since the start."""
        if tuple(ledger_files(self.store)["request"]) != self.requests:
            raise JobError(
                f"{self.store.root}: a purge has begun in the meantime; run the command again when it is finished"
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors into the JobError of `check` if a purge has begun: it may have deleted or replaced the files."""
        try:
            yield
        except (FileNotFoundError, PairmillError):
            self.check()
            raise
