"""Lets only one purge at a time work on an output folder, and checks that it can delete files there."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from pairmill.pipeline.common.storage import StorageError, Store
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record, record_bytes
from pairmill.pipeline.dataset.withdrawn import LEDGER, RUNNING
from pairmill.pipeline.purge.ledger import now
from pairmill.schemas.errors import JobError
from pairmill.schemas.purge import RunningPurge

_held: set[str] = set()
_holding = threading.Lock()


@contextmanager
def only_purge(store: Store) -> Iterator[None]:
    """Lock the output folder for this purge. Raises JobError if another purge is running, and StorageError if deleting
    is not permitted.

    Each process writes its own file, then looks for the files of other processes: of two, at least the later one sees
    the other's. A file that a killed process on this machine left behind is deleted. It is impossible to tell whether a
    process on another machine is still running.
    """
    with _holding:
        if store.root in _held:
            raise JobError(f"{store.root}: another purge is running in this process; wait until it ends")
        _held.add(store.root)
    try:
        _check_deletes(store)
        mine = RunningPurge(host=socket.gethostname(), pid=os.getpid(), started_at=now())
        name = f"{RUNNING}-{uuid4().hex}.json"
        store.create(f"{LEDGER}/{name}", record_bytes(mine))
        try:
            for other in store.list(LEDGER):
                if other.startswith(RUNNING) and other != name:
                    _refuse_if_alive(store, f"{LEDGER}/{other}", mine)
            yield
        finally:
            with suppress(OSError):
                store.delete(f"{LEDGER}/{name}")
    finally:
        with _holding:
            _held.discard(store.root)


def _refuse_if_alive(store: Store, name: str, mine: RunningPurge) -> None:
    """Raise JobError unless the file belongs to a process that has ended. If that process was killed, delete the file;
    its name is never used again."""
    with suppress(FileNotFoundError):  # the other purge has just ended
        try:
            other = read_record(store, name, RunningPurge, "delete it")
        except DamagedManifestError as error:
            raise JobError(f"another purge may be running: {error}") from None
        if other.host != mine.host or (other.pid != mine.pid and _is_alive(other.pid)):
            raise JobError(
                f"{store.root}: another purge has been running since {other.started_at}, as process {other.pid} on "
                f"{other.host}; wait until it ends. If it was killed, delete {store.path(name)}"
            )
        store.delete(name)


def _check_deletes(store: Store) -> None:
    name = f"{LEDGER}/probe-{uuid4().hex}"
    store.create(name, b"")
    try:
        store.delete(name)
    except PermissionError as error:
        raise StorageError(
            f"{store.root}: no permission to delete ({error}); a purge needs the right to delete objects. Nothing was "
            f"withdrawn; {store.path(name)} was left behind"
        ) from None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
