"""Reads and writes mixtures, each in a folder of its own:

mixture.json                     the record, written last; names the other files
sources/000/rows/00000.parquet   of each dataset, the same files as those of a subset (subset.py)
sources/000/shards/..
"""

from pydantic import ValidationError

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import SubsetError, delete_files
from pairmill.schemas.manifest import SCHEMA_VERSION
from pairmill.schemas.mixture import MIXTURE_RECORD, Mixture


def is_mixture(store: Store) -> bool:
    """Whether the folder is a mixture."""
    return store.exists(MIXTURE_RECORD)


def read_mixture(store: Store) -> Mixture:
    """The record of a mixture. Raises SubsetError."""
    try:
        mixture = Mixture.model_validate_json(store.read(MIXTURE_RECORD))
    except FileNotFoundError:
        raise SubsetError(f"{store.root} is no mixture; to select a subset of it again, add its name") from None
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise SubsetError(f"{store.path(MIXTURE_RECORD)} is damaged ({problem}): mix again in another folder") from None
    if mixture.schema_version > SCHEMA_VERSION:
        raise SubsetError(f"{store.root} was written by a newer pairmill; update to read it")
    return mixture


def publish_mixture(store: Store, mixture: Mixture, replaced: Mixture | None) -> bool:
    """Write the record, which makes the mixture exist, and delete the files of the one it replaces, if any.

    Returns False, and deletes the files of `mixture`, if another run finished one in this folder first.
    """
    data = mixture.model_dump_json(indent=1).encode()
    if replaced is not None:
        store.replace(MIXTURE_RECORD, data)
        _delete(store, replaced)
    elif not store.create(MIXTURE_RECORD, data) and read_mixture(store).attempt != mixture.attempt:
        _delete(store, mixture)
        return False
    return True


def _delete(store: Store, mixture: Mixture) -> None:
    for source in mixture.sources:
        delete_files(store, source.rows)


def outdated_error(store: Store, mixture: Mixture, number: int, shard: int) -> SubsetError:
    """The error for a dataset, by its number, in which this shard has changed."""
    source = mixture.sources[number]
    return SubsetError(
        f"{store.root}: shard {shard:09d} of {source.dataset} was rebuilt since they were mixed; mix again: "
        f"pairmill select {store.root} --refresh"
    )
