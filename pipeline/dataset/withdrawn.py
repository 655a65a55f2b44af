"""Says where the ledger of withdrawn rows is, and refuses work on a dataset whose purge was interrupted.

`pairmill.pipeline.purge` writes the ledger, and `pairmill.schemas.purge` defines its files.
"""

import re
from collections.abc import Iterator

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed
from pairmill.schemas.errors import JobError

LEDGER = "withdrawn"
PARTS = f"{LEDGER}/parts"
RUNNING = "running"
"""How the names of files in LEDGER begin that say which processes are withdrawing rows."""

_NAME = re.compile(r"(\d{6,})\.(request\.parquet|done\.json|rows\.parquet)")


class UnfinishedPurgeError(JobError):
    """A purge was interrupted, or is running; the message says how to finish it."""


def request_name(number: int) -> str:
    """The file of a request."""
    return f"{LEDGER}/{number:06d}.request.parquet"


def rows_name(number: int) -> str:
    """The file with the rows that a purge withdrew."""
    return f"{LEDGER}/{number:06d}.rows.parquet"


def purged_name(number: int) -> str:
    """The file that says what a purge changed and deleted."""
    return f"{LEDGER}/{number:06d}.purged.json"


def done_name(number: int) -> str:
    """The file that says that a purge is finished."""
    return f"{LEDGER}/{number:06d}.done.json"


def ledger_files(store: Store) -> dict[str, list[int]]:
    """`request`, `rows` and `done` -> the numbers of these files, ascending. From one listing."""
    found: dict[str, list[int]] = {"request": [], "rows": [], "done": []}
    for number, kind in _files(store):
        found[kind].append(number)
    return {kind: sorted(numbers) for kind, numbers in found.items()}


def unfinished_purges(store: Store) -> list[int]:
    """The numbers of the requests that are not done, ascending."""
    files = ledger_files(store)
    return sorted(set(files["request"]) - set(files["done"]))


def refuse_unfinished_purge(store: Store) -> None:
    """Raise UnfinishedPurgeError if a purge was interrupted, or is running: until it is finished, rows are in some
    places and not in others, and what is made from them would keep what was to be withdrawn."""
    if unfinished_purges(store):
        raise UnfinishedPurgeError(
            f"{store.root}: a purge is not finished; finish it first: pairmill purge {store.root} (wait, if it is "
            "running)"
        )


def readable_shards(store: Store) -> dict[int, int]:
    """Shard -> generation of the committed shards. THE way to open a dataset whose rows are read: it refuses one with
    an unfinished purge, as `refuse_unfinished_purge` does. What was opened before a purge began may go on with what it
    has opened, until the files are gone."""
    refuse_unfinished_purge(store)
    return committed(store)


def _files(store: Store) -> Iterator[tuple[int, str]]:
    for name in store.list(LEDGER):
        if match := _NAME.fullmatch(name):
            yield int(match[1]), match[2].partition(".")[0]
