"""Records in a dataset where its exports are, in `exports/DIGEST.json`, so that a purge can find them."""

import hashlib
from collections.abc import Iterator

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_record, record_bytes
from pairmill.schemas.purge import ExportNote

_FOLDER = "exports"


def note_export(store: Store, note: ExportNote) -> bool:
    """Record an export in the dataset. Returns False if the dataset is not writable; users must then pass the export
    to the purge themselves."""
    try:
        store.create(note_name(note.output), record_bytes(note))
    except OSError:  # the dataset is read-only for this user, as in a public bucket
        return False
    return True


def note_name(output: str) -> str:
    """Name of the file that records where an export is. Without this file, a purge does not find the export."""
    digest = hashlib.blake2b(output.encode(), digest_size=8).hexdigest()
    return f"{_FOLDER}/{digest}.json"


def noted_exports(store: Store) -> Iterator[ExportNote]:
    """The exports that the dataset has recorded. Raises DamagedManifestError."""
    return (read_note(store, name) for name in note_files(store))


def note_files(store: Store) -> list[str]:
    """The files that record exports."""
    return [f"{_FOLDER}/{name}" for name in store.list(_FOLDER) if name.endswith(".json")]


def read_note(store: Store, name: str) -> ExportNote:
    """The content of a file in `note_files`. Raises DamagedManifestError."""
    return read_record(store, name, ExportNote, "move it elsewhere, and pass the export's path to the purge")
