"""Reads and rewrites the columns that were added to a shard's pairs, row by row, and finds scores whose state contains
withdrawn rows."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.columns.added_columns import MODEL_CARD, column_sets, lost_cards
from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.columns.commands import score_command, score_footer
from pairmill.pipeline.columns.score_card import SCORE_CARD, ScoreCard, State, read_score_card, read_state
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import ManifestError, read_columns_manifest, record_bytes
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import digest
from pairmill.pipeline.purge.matching import Mask
from pairmill.pipeline.purge.witness import VECTOR
from pairmill.pipeline.score.kinds import kind_of
from pairmill.schemas.manifest import ColumnsManifest, ShardManifest, manifest_name
from pairmill.schemas.pairs import score_column_names

_OWN_FOOTER = ("schema_version", "shard")


@dataclass(frozen=True)
class SideColumns:
    """The columns that belong to one generation of a shard."""

    store: Store
    records: tuple[tuple[str, ColumnsManifest], ...]
    """(folder in `columns/`, its manifest for the shard)."""

    @classmethod
    def of(cls, store: Store, manifest: ShardManifest) -> "SideColumns":
        """The columns that belong to the shard's pairs file. Columns of other generations are not used."""
        return cls(store, tuple(_records(store, manifest)))

    @property
    def paths(self) -> list[str]:
        """The file of each folder."""
        return [record.file.path for _, record in self.records]

    def read(self, rows: Mask) -> list[pa.Table]:
        """The columns for some rows of the pairs file, as one table per folder."""
        if not rows.any():
            return []
        return [read_table(self.store, path).filter(pa.array(rows)) for path in self.paths]

    @property
    def written_captions(self) -> frozenset[str]:
        """The columns with captions that a model wrote. Raises ManifestError."""
        scores = [name for name, _ in self.records if self.store.exists(f"columns/{name}/{SCORE_CARD}")]
        return frozenset(name for name in scores if read_score_card(self.store, name).score.caption_model is not None)

    def beside(self, pairs: pa.Table, names: Collection[str]) -> pa.Table:
        """The table of the pairs file, plus the added columns among `names` that it lacks."""
        missing = set(names) - set(pairs.column_names)
        for _, record in self.records if missing else ():
            added = read_table(self.store, record.file.path, missing)
            for field, column in zip(added.schema, added.columns, strict=True):
                pairs = pairs.append_column(field, column)
        return pairs

    def write(self, new: ShardManifest, pairs: pa.Table, gone: Mask) -> None:
        """Write the columns of the next generation. `pairs`: the old pairs; `gone`: which of them are removed.

        If none are removed, the file stays and gets a manifest for the new generation.
        """
        for name, record in self.records:
            path = f"columns/{name}/manifests/{manifest_name(new.shard, new.generation)}"
            self.store.delete(path)  # from an interrupted call, whose pairs file had another checksum
            if not gone.any():
                kept = record.model_copy(update={"generation": new.generation})
                self.store.create(path, record_bytes(kept))
                continue
            table = read_table(self.store, record.file.path)
            footer = json.loads((table.schema.metadata or {}).get(b"pairmill", b"{}"))
            about = {key: value for key, value in footer.items() if key not in _OWN_FOOTER}
            left_out = max(0, record.pictures_left_out - _lacking(pairs, table, gone))
            columns = table.filter(pa.array(~gone))
            write_columns(self.store, name, columns, new, about, record.job_fingerprint, left_out)


def _records(store: Store, manifest: ShardManifest) -> Iterator[tuple[str, ColumnsManifest]]:
    for name in store.folders("columns"):
        try:
            record = read_columns_manifest(store, name, manifest.name)
        except FileNotFoundError:
            continue
        if record.pairs_blake2b == manifest.files["pairs"].blake2b:
            yield name, record


def _lacking(pairs: pa.Table, columns: pa.Table, gone: Mask) -> int:
    """The number of removed rows that have a picture but only nulls in the added columns."""
    lacking = pairs["image_tar"].filter(pa.array(gone)).is_valid()
    for name in columns.column_names:
        if name != "row_id":
            lacking = pc.and_(lacking, columns[name].filter(pa.array(gone)).is_null())
    return pc.sum(lacking).as_py() or 0


def refuse_lost_scores(store: Store) -> None:
    """Raise ManifestError if the card of a model or score is lost, the card or state of a score is damaged, or a score
    that another one is made from is lost: it would be unknown whether the score depends on withdrawn rows."""
    try:
        for problem in lost_cards(store):
            raise ManifestError(problem)
        cards, states = _scores(store)
        for name, state in states.items():
            for source in _lost_sources(store, cards, name, state):
                again = score_command(store.root, name, score_footer(name, cards[name].score)["settings"])
                raise ManifestError(
                    f"{store.path(f'columns/{name}')} was made from the score {source!r}, which has since been deleted "
                    f"or replaced; delete the folder and, once there is a score {source!r}, run: {again}"
                )
    except ManifestError as error:
        raise ManifestError(
            f"{error} (the purge cannot know whether these values depend on withdrawn rows; if you do not need them, "
            "delete their folder)"
        ) from None


def scores_with(
    store: Store, uids: DigestSet, read_vectors: Callable[[], DigestSet], lost_pairs: bool
) -> dict[str, str]:
    """Name -> settings, as given to `score --score`, of the scores that depend on withdrawn rows: those whose state
    contains a row's uid or embedding; if pairs are withdrawn (`lost_pairs`), those whose state summarizes all pairs;
    and those that are made from such a score. Each score comes after the scores that it is made from. `read_vectors`:
    returns the digests of the rows' embeddings; called only if a state contains embeddings.

    Such a score was computed in relation to the row: its values can neither stay as they are nor be recomputed without
    the row. Raises ManifestError.
    """
    cards, states = _scores(store)
    vectors = read_vectors() if any(map(_embeddings, states.values())) else DigestSet.of([])
    found = {name for name, state in states.items() if _holds(state, uids, vectors)}
    if lost_pairs:
        found |= {name for name, state in states.items() if _summarizes(cards[name], state)}
    while more := [name for name, state in states.items() if name not in found and found & state.sources.keys()]:
        found |= set(more)
    ordered = TopologicalSorter({name: sorted(found & states[name].sources.keys()) for name in sorted(found)})
    return {
        name: json.dumps(cards[name].score.model_dump(mode="json", exclude_defaults=True))
        for name in ordered.static_order()
    }


def _scores(store: Store) -> tuple[dict[str, ScoreCard], dict[str, State]]:
    """The cards and the states of all scores by name. Raises ManifestError."""
    cards = {each.name: read_score_card(store, each.name) for each in column_sets(store) if each.kind == "score"}
    return cards, {name: read_state(store, card) for name, card in cards.items()}


def _lost_sources(store: Store, cards: Mapping[str, ScoreCard], name: str, state: State) -> Iterator[str]:
    """The scores that a score is made from and that are gone or have other values now. Models do not matter: their
    values depend only on the row itself."""
    for source, fingerprint in state.sources.items():
        if source in cards and cards[source].fingerprint == fingerprint:
            continue
        if store.exists(f"columns/{source}/{MODEL_CARD}"):
            continue
        columns = kind_of(name, cards[name].score).needs.columns
        if columns.isdisjoint(score_column_names(source)):
            yield source


def _holds(state: State, uids: DigestSet, vectors: DigestSet) -> bool:
    for tensor in _uids(state):
        texts = [f"{high:016x}{low:016x}" for high, low in tensor.tolist()]
        if uids.contains([digest("uid", text.encode()) for text in texts]).any():
            return True
    rows = (np.ascontiguousarray(tensor) for tensor in _embeddings(state))
    return any(vectors.contains([digest(VECTOR, row.tobytes()) for row in each]).any() for each in rows)


def _summarizes(card: ScoreCard, state: State) -> bool:
    """Whether the state is computed from all pairs and does not show from which: their values, or parts of their
    captions, with counts."""
    shows_rows = bool(_uids(state) or _embeddings(state))
    return bool(state.tensors) and not shows_rows and kind_of(card.name, card.score).needs.all_rows


def _uids(state: State) -> list[npt.NDArray[np.generic]]:
    """The tensors of a state that contain uids [rows, 2]."""
    tensors = state.tensors.items()
    return [each for name, each in tensors if each.ndim == 2 and name.endswith("uids") and each.dtype == np.uint64]


def _embeddings(state: State) -> list[npt.NDArray[np.generic]]:
    """The tensors of a state that contain embeddings [rows, dim]."""
    return [each for each in state.tensors.values() if each.ndim == 2 and len(each) and each.dtype == np.float16]
