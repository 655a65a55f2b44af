"""Notes in a dataset where its exports are: `exports/DIGEST.json`, so that a purge finds them."""

import hashlib
from collections.abc import Iterator

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_record
from pairmill.schemas.purge import ExportNote

_FOLDER = "exports"


def note_export(store: Store, note: ExportNote) -> bool:
    """Note an export. Returns False if the dataset cannot be written to: a purge must then be told where it is."""
    try:
        store.create(note_name(note.output), note.model_dump_json(indent=1).encode())
    except OSError:  # read-only for whoever exports, such as a public bucket
        return False
    return True


def note_name(output: str) -> str:
    """The file that says where an export is. If it is deleted, no purge looks for the export."""
    digest = hashlib.blake2b(output.encode(), digest_size=8).hexdigest()
    return f"{_FOLDER}/{digest}.json"


def noted_exports(store: Store) -> Iterator[ExportNote]:
    """The exports that were noted. Raises DamagedManifestError."""
    for name in store.list(_FOLDER):
        if name.endswith(".json"):
            yield read_record(store, f"{_FOLDER}/{name}", ExportNote, "move it elsewhere, and name the export itself")
