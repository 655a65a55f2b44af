"""Reads the card of a model that was added to a dataset, and counts the pictures that the model could not embed."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pairmill.pipeline.columns.added_columns import MODEL_CARD, AddedColumns, ColumnSet, columns_done
from pairmill.pipeline.columns.commands import card_again
from pairmill.pipeline.columns.score_card import read_score_card
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_columns_manifest, read_record
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.manifest import manifest_name

_READERS = 32


class AddedModel(ModelConfig):
    """`columns/ALIAS/model.json`: the model and the fingerprint of the job that added it."""

    fingerprint: str


def read_card(store: Store, alias: str) -> AddedModel:
    """The added model with this alias. Raises ManifestError or FileNotFoundError."""
    return read_record(store, f"columns/{alias}/{MODEL_CARD}", AddedModel, partial(card_again, store, alias))


def added_model(store: Store, alias: str) -> AddedModel | None:
    """The added model with this alias; None if there is none. Raises ManifestError."""
    return read_card(store, alias) if store.exists(f"columns/{alias}/{MODEL_CARD}") else None


def fingerprints(added: AddedColumns, names: Collection[str]) -> dict[str, str]:
    """The fingerprints of these models and scores by name, as far as they are complete. One that was deleted and added
    again with other values has another fingerprint."""
    return {each.name: _fingerprint(each) for each in added.complete if each.name in names}


def _fingerprint(added: ColumnSet) -> str:
    read = read_card if added.kind == "model" else read_score_card
    return read(added.store, added.name).fingerprint


def pictures_left_out(store: Store, name: str) -> dict[str, int]:
    """Name of a shard's newest manifest -> number of pictures without an embedding or a score. Omits shards without
    such pictures. Raises ManifestError."""
    names = [manifest_name(*each) for each in sorted(columns_done(store, name).items())]
    with ThreadPoolExecutor(_READERS if store.remote else 1) as readers:
        counts = [each.pictures_left_out for each in readers.map(partial(read_columns_manifest, store, name), names)]
    return {name: count for name, count in zip(names, counts, strict=True) if count}
