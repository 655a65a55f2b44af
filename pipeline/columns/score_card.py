"""Reads and writes the card of a score, which records its settings and all inputs to its values except the rows.

columns/NAME/score.json                    the card; a different score under the same name is refused
columns/NAME/state.DIGEST.safetensors      the state, prepared once: the weights of a head, class embeddings, a sketch

With the state, a score is a function of the row alone. So its values do not depend on workers, order, shard size or the
time when a shard was added, and `verify` can recompute them without the files that the job read.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pairmill.pipeline.columns.commands import STATE_NAME, card_again, command_of
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record
from pairmill.schemas.job.scores import ScoreConfig
from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile

SCORE_CARD = "score.json"
NOTES = "notes"
"""Key of the notes in `State.values`."""
SOURCES = "sources"
"""Key of the sources in `State.values`."""
_JSON = "json"
"""Name of the tensor that contains the values of a state, as JSON in UTF-8: safetensors for NumPy cannot read the
metadata of a file."""


class ScoreColumn(BaseModel):
    """One column of a score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    type: str
    """Arrow's name of the type."""


class ScoreCard(BaseModel):
    """`columns/NAME/score.json`. Create-only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    score: ScoreConfig
    columns: list[ScoreColumn]
    state: DataFile
    versions: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of the settings and the state: 32 hex characters."""
        settings = json.dumps(self.score.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.blake2b(f"{settings}\n{self.state.blake2b}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class State:
    """The data that was prepared once for a score."""

    tensors: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    values: Mapping[str, object] = field(default_factory=dict)
    """JSON values: names of classes, sizes, digests of files."""

    @property
    def notes(self) -> list[str]:
        """Facts about the preparation that users must know, one sentence each."""
        notes = self.values.get(NOTES)
        return [str(note) for note in notes] if isinstance(notes, list) else []

    @property
    def sources(self) -> Mapping[str, str]:
        """Fingerprints of the added models and scores whose columns the score reads, by name."""
        sources = self.values.get(SOURCES)
        return {str(name): str(value) for name, value in sources.items()} if isinstance(sources, dict) else {}

    def to_bytes(self) -> bytes:
        """Serialize for `from_bytes`, as a safetensors file. Equal states produce equal bytes."""
        values = np.frombuffer(json.dumps(self.values, sort_keys=True).encode(), np.uint8)
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in sorted(self.tensors.items())}
        return bytes(save({**tensors, _JSON: values}))

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        """Parse the result of `to_bytes`. Raises ValueError for anything else."""
        try:
            tensors = dict(load(data))
            values = json.loads(tensors.pop(_JSON).tobytes())
        except (SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"not a state: {error}") from None
        return cls(tensors, values)


def read_score_card(store: Store, name: str) -> ScoreCard:
    """The card of a score. Raises ManifestError or FileNotFoundError."""
    path = f"columns/{name}/{SCORE_CARD}"
    card = read_record(store, path, ScoreCard, partial(card_again, store, name))
    if card.name != name:
        raise DamagedManifestError(
            f"{store.path(path)} is the card of the score {card.name[:100]!r}: its folder was copied or renamed; "
            f"move columns/{name} elsewhere"
        )
    return card


def write_state(store: Store, name: str, state: State) -> DataFile:
    """Store a state under a name that contains its checksum, so that two runs never write different content to the
    same file."""
    data = state.to_bytes()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    path = f"columns/{name}/state.{digest}.safetensors"
    store.create(path, data)  # if it exists, its content is the same
    return DataFile(path=path, num_bytes=len(data), blake2b=digest)


def stored_states(store: Store, name: str) -> Iterator[DataFile]:
    """The states in the folder of a score, as in the card. `read_state` checks their content."""
    for file in store.list(f"columns/{name}"):
        if found := STATE_NAME.fullmatch(file):
            path = f"columns/{name}/{file}"
            yield DataFile(path=path, num_bytes=store.num_bytes(path), blake2b=found[1])


def stray_states(store: Store, name: str) -> list[str]:
    """The states in a folder in `columns/` that belong to no score: an interrupted `score` prepared them. If the card
    is lost, its state is still needed for the values. Raises ManifestError if the card is damaged."""
    states = [state.path for state in stored_states(store, name)]
    if not states:
        return []
    try:
        used = [read_score_card(store, name).state.path]
    except FileNotFoundError:
        used = states if store.list(f"columns/{name}/manifests") else []
    return [path for path in states if path not in used]


def read_state(store: Store, card: ScoreCard) -> State:
    """The state of a score. Raises DamagedManifestError if the state is missing or has changed."""
    where = store.path(card.state.path)
    folder, _, file = card.state.path.rpartition("/")
    if folder != f"columns/{card.name}" or not STATE_NAME.fullmatch(file):
        raise DamagedManifestError(f"{where} is not a valid name for a state file; {_remedy(store, card.name)}")
    try:
        data = store.read(card.state.path)
    except FileNotFoundError:
        raise DamagedManifestError(f"{where} is missing; {_remedy(store, card.name)}") from None
    if hashlib.blake2b(data, digest_size=16).hexdigest() != card.state.blake2b:
        raise DamagedManifestError(f"{where} has changed since it was written; {_remedy(store, card.name)}")
    return State.from_bytes(data)


def _remedy(store: Store, name: str) -> str:
    return f"restore it from a copy, or move columns/{name} elsewhere and run: {command_of(store, name)}"
