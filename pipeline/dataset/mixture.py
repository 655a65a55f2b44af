"""Reads and writes mixtures. Each mixture has its own folder:

mixture.json                     the record, written last; names the other files
sources/000/rows/00000.parquet   for each dataset, the same files as for a subset (subset.py)
sources/000/shards/..
"""

from collections.abc import Iterator

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record, record_bytes
from pairmill.pipeline.dataset.output_folder import why_not_there
from pairmill.pipeline.dataset.subset import SubsetError, delete_files, files_in, paths_of
from pairmill.schemas.manifest import SCHEMA_VERSION
from pairmill.schemas.mixture import MIXTURE_RECORD, Mixture

SOURCES = "sources"
"""Folder of the files of all sources."""

_REMEDY = "restore it from a copy, or move it elsewhere and mix again"


def is_mixture(store: Store) -> bool:
    """Whether the folder is a mixture."""
    return store.exists(MIXTURE_RECORD)


def lost_record(store: Store) -> str | None:
    """The problem with a folder that contains files of a mixture but no record. None for any other folder."""
    if is_mixture(store) or store.list("plan"):
        return None
    if not any(any(files_in(store, f"{SOURCES}/{source}")) for source in store.folders(SOURCES)):
        return None
    return f"{store.path(MIXTURE_RECORD)} is missing; if no `select` is running, restore it from a copy or mix again"


def read_mixture(store: Store) -> Mixture:
    """The record of a mixture. Raises SubsetError."""
    try:
        mixture = read_record(store, MIXTURE_RECORD, Mixture, _REMEDY)
    except FileNotFoundError:
        raise SubsetError(why_not_there(store) or lost_record(store) or f"{store.root} is not a mixture") from None
    except DamagedManifestError as error:
        raise SubsetError(str(error)) from None
    if mixture.schema_version > SCHEMA_VERSION:
        raise SubsetError(f"{store.root} was written by a newer pairmill; update to read it")
    return mixture


def publish_mixture(store: Store, mixture: Mixture, replaced: Mixture | None) -> bool:
    """Write the record, which makes the mixture exist, and delete the files of all other mixtures in the folder: the
    replaced mixture and any unfinished ones.

    If another run finished a mixture in this folder first, deletes the files of `mixture` and returns False.
    """
    data = record_bytes(mixture)
    if replaced is None:
        is_first = store.create(MIXTURE_RECORD, data) or read_mixture(store).attempt == mixture.attempt
    elif is_first := read_mixture(store).attempt == replaced.attempt:
        store.replace(MIXTURE_RECORD, data)
    if is_first:
        _delete_others(store, mixture)
    else:
        for source in mixture.sources:
            delete_files(store, source.rows)
    return is_first


def _delete_others(store: Store, mixture: Mixture) -> None:
    for path in strays_of(store, mixture):
        store.delete(path)


def strays_of(store: Store, mixture: Mixture) -> Iterator[str]:
    """The files in the folders of a mixture that do not belong to it. They are from an interrupted run, or from one in
    progress."""
    own = {path for source in mixture.sources for path in paths_of(source.rows)}
    for source in store.folders(SOURCES):
        yield from (path for path in files_in(store, f"{SOURCES}/{source}") if path not in own)


def outdated_error(store: Store, mixture: Mixture, number: int, shard: int) -> SubsetError:
    """The error for a changed shard of the dataset with this index."""
    source = mixture.sources[number]
    return SubsetError(
        f"{store.root}: shard {shard:09d} of {source.dataset} was rebuilt after the mixture was made; mix again: "
        f"{pairmill_command('select', store.root, '--refresh')}"
    )
