"""Reads and writes mixtures. Each mixture has its own folder:

mixture.json                     the record, written last; names the other files
sources/000/rows/00000.parquet   for each dataset, the same files as for a subset (subset.py)
sources/000/shards/..
"""

from pydantic import ValidationError

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.output_folder import why_not_there
from pairmill.pipeline.dataset.subset import SubsetError, delete_files, files_in, paths_of
from pairmill.schemas.manifest import SCHEMA_VERSION
from pairmill.schemas.mixture import MIXTURE_RECORD, Mixture

SOURCES = "sources"
"""Folder of the files of all sources."""


def is_mixture(store: Store) -> bool:
    """Whether the folder is a mixture."""
    return store.exists(MIXTURE_RECORD)


def read_mixture(store: Store) -> Mixture:
    """The record of a mixture. Raises SubsetError."""
    try:
        mixture = Mixture.model_validate_json(store.read(MIXTURE_RECORD))
    except FileNotFoundError:
        raise SubsetError(why_not_there(store) or f"{store.root} is not a mixture") from None
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise SubsetError(f"{store.path(MIXTURE_RECORD)} is damaged ({problem}); mix again in another folder") from None
    if mixture.schema_version > SCHEMA_VERSION:
        raise SubsetError(f"{store.root} was written by a newer pairmill; update to read it")
    return mixture


def publish_mixture(store: Store, mixture: Mixture, replaced: Mixture | None) -> bool:
    """Write the record, which makes the mixture exist, and delete the files of all other mixtures in the folder: the
    replaced mixture and any unfinished ones.

    If another run finished a mixture in this folder first, deletes the files of `mixture` and returns False.
    """
    data = mixture.model_dump_json(indent=1).encode()
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
    """Delete the files that do not belong to this mixture."""
    own = {path for source in mixture.sources for path in paths_of(source.rows)}
    for source in store.folders(SOURCES):
        for path in files_in(store, f"{SOURCES}/{source}"):
            if path not in own:
                store.delete(path)


def outdated_error(store: Store, mixture: Mixture, number: int, shard: int) -> SubsetError:
    """The error for a changed shard of the dataset with this index."""
    source = mixture.sources[number]
    return SubsetError(
        f"{store.root}: shard {shard:09d} of {source.dataset} was rebuilt after the mixture was made; mix again: "
        f"{pairmill_command('select', store.root, '--refresh')}"
    )
