"""Makes the filters of a build once: every run into the same output uses the filters of the first run.

known/known.json           the record, written last and create-only
known/KIND.ATTEMPT.keys    one file of keys per kind of value
"""

from collections.abc import Sequence
from uuid import uuid4

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.manifests import read_record, record_bytes
from pairmill.pipeline.known.filters import collected, values_file
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.lookup import FilterId
from pairmill.pipeline.known.sources import open_source
from pairmill.schemas.known import KnownFilter, KnownRecord, KnownRows
from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile

FOLDER = "known"
RECORD = f"{FOLDER}/known.json"

_NOUNS = {"uid": "uid", "url": "URL", "sha256": "SHA-256", "md5": "MD5", "phash": "phash", "pdq": "pdq"}


def prepared(store: Store, lists: Sequence[KnownRows]) -> KnownRecord:
    """The record of the existing filters, or of new ones.

    Raises KnownError if a source cannot be used, or if filters exist and a list was replaced or has changed since they
    were made. A dataset at the same path may have changed: the rows that it had when the filters were made count.
    """
    if (record := read_known(store)) is None:
        begun = bool(store.list("plan"))  # before the second look, because another run writes its plan last
        if (record := read_known(store)) is None and begun:
            raise KnownError(
                f"{store.root} was begun without known rows; leave them out, or choose another output folder"
            )
    if record is None:
        return _made(store, lists)
    _check_same(store, lists, record)
    return record


def _check_same(store: Store, lists: Sequence[KnownRows], record: KnownRecord) -> None:
    """Raise KnownError unless the filters were made from these sources. Sources may have moved."""
    other = "choose another output folder, or restore the original settings"
    if [_without_path(known) for known in lists] != [_without_path(source.known) for source in record.sources]:
        raise KnownError(f"{store.root} was begun with different known rows (see {RECORD}): {other}")
    for known, then in zip(lists, record.sources, strict=True):
        if then.is_dataset and known.path == then.known.path:
            continue  # it may have grown or be gone
        if open_source(known, store.files, store.root).fingerprint != then.fingerprint:
            raise KnownError(
                f"{known.path} has changed since {store.root} was begun: choose another output folder, or restore its "
                "original content"
            )


def _without_path(known: KnownRows) -> KnownRows:
    return known.model_copy(update={"path": ""})


def read_known(store: Store) -> KnownRecord | None:
    """The record of the filters; None if there are none. Raises DamagedManifestError and KnownError."""
    try:
        record = read_record(store, RECORD, KnownRecord, "move the output elsewhere, or restore it from a copy")
    except FileNotFoundError:
        return None
    if record.schema_version > SCHEMA_VERSION:
        raise KnownError(f"{store.path(RECORD)} was written by a newer pairmill; update to read it")
    return record


def check_sources(store: Store, lists: Sequence[KnownRows]) -> None:
    """Open all sources, without reading their values. Raises KnownError."""
    for known in lists:
        open_source(known, store.files, store.root)


def _made(store: Store, lists: Sequence[KnownRows]) -> KnownRecord:
    attempt = uuid4().hex
    with collected(store, lists, store.root) as found:
        filters = []
        for which, collector in found.collectors.items():
            with values_file(store, collector) as (file, num_values, digest, num_bytes):
                name = f"{FOLDER}/{which}.{attempt}.keys"
                store.create_from(name, file)  # the name contains the attempt, so an existing file is ours
            filters.append(_filter(which, num_values, DataFile(path=name, num_bytes=num_bytes, blake2b=digest)))
        record = KnownRecord(attempt=attempt, sources=list(found.sources), filters=filters)
    if store.create(RECORD, record_bytes(record)):
        _remove_strays(store, record)
        return record
    other = read_known(store)  # another run was faster, or our record was written but the reply was lost
    if other is None:
        raise KnownError(f"{store.path(RECORD)} is gone: run the command again")
    if other.attempt != attempt:
        for each in record.filters:
            store.delete(each.file.path)
    return other


def _remove_strays(store: Store, record: KnownRecord) -> None:
    """Delete the files of attempts that did not finish and never will: there can be no second record."""
    named = {RECORD, *(each.file.path for each in record.filters)}
    for name in store.list(FOLDER):
        if f"{FOLDER}/{name}" not in named:
            store.delete(f"{FOLDER}/{name}")


def _filter(which: FilterId, num_values: int, file: DataFile) -> KnownFilter:
    first_bit = which.band.first_bit
    return KnownFilter(kind=which.kind, distance=which.distance, first_bit=first_bit, values=num_values, file=file)


def describe_known(record: KnownRecord) -> str:
    """What the filters were made from, one line per source."""
    lines = []
    for source in record.sources:
        values = ", ".join(counted(count, _NOUNS[kind]) for kind, count in source.values.items()) or "nothing"
        unused = "".join(f"; {count:,} x {reason}" for reason, count in sorted(source.unused.items()))
        lines.append(f"known: {values} from {source.known.path}{unused}")
    return "\n".join(lines)
