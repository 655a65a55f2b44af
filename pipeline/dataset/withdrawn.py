"""Names and lists the files of the ledger of withdrawn rows, and refuses work on a dataset with an unfinished purge.

`pairmill.pipeline.purge` writes the ledger, and `pairmill.schemas.purge` defines its files.
"""

import re
from collections.abc import Iterator

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.manifests import committed
from pairmill.schemas.errors import JobError

LEDGER = "withdrawn"
PARTS = f"{LEDGER}/parts"
RUNNING = "running"
"""Prefix of the files in LEDGER that record which processes are withdrawing rows."""

PURGED_REMEDY = "move it elsewhere and finish the purge, which will not report what was done before"
"""The remedy for a damaged `purged_name` of an unfinished purge."""

_NAME = re.compile(r"(\d{6,})\.(request\.parquet|done\.json|rows\.parquet|purged\.json)")


class UnfinishedPurgeError(JobError):
    """A purge was interrupted or is still running. The message says how to finish it."""


def request_name(number: int) -> str:
    """Name of the file with a request."""
    return f"{LEDGER}/{number:06d}.request.parquet"


def rows_name(number: int) -> str:
    """Name of the file with the rows that a purge withdrew."""
    return f"{LEDGER}/{number:06d}.rows.parquet"


def purged_name(number: int) -> str:
    """Name of the file that records what a purge changed and deleted."""
    return f"{LEDGER}/{number:06d}.purged.json"


def done_name(number: int) -> str:
    """Name of the file that marks a purge as finished."""
    return f"{LEDGER}/{number:06d}.done.json"


def ledger_files(store: Store) -> dict[str, list[int]]:
    """Kind of file (`request`, `rows`, `purged` or `done`) -> numbers of the files, ascending. Uses one listing."""
    found: dict[str, list[int]] = {"request": [], "rows": [], "purged": [], "done": []}
    for number, kind in _files(store):
        found[kind].append(number)
    return {kind: sorted(numbers) for kind, numbers in found.items()}


def unfinished_purges(store: Store) -> list[int]:
    """The numbers of the unfinished requests, ascending."""
    files = ledger_files(store)
    return sorted(set(files["request"]) - set(files["done"]))


def refuse_unfinished_purge(store: Store) -> None:
    """Raise UnfinishedPurgeError if a purge was interrupted or is running. Until it is finished, some files still
    contain withdrawn rows, and so would any output made from them."""
    if unfinished_purges(store):
        finish = pairmill_command("purge", store.root)
        raise UnfinishedPurgeError(
            f"{store.root}: a purge is not finished; finish it first: {finish} (if it is still running, wait)"
        )


def readable_shards(store: Store) -> dict[int, int]:
    """Shard -> generation of the committed shards. Call this before reading the rows of a dataset: it raises the error
    of `refuse_unfinished_purge`. A reader that started before a purge can continue until the files are deleted."""
    refuse_unfinished_purge(store)
    return committed(store)


def _files(store: Store) -> Iterator[tuple[int, str]]:
    for name in store.list(LEDGER):
        if match := _NAME.fullmatch(name):
            yield int(match[1]), match[2].partition(".")[0]
