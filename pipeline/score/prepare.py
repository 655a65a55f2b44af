"""Prepares a score: fills in its settings, makes its state, and writes its card."""

from collections.abc import Mapping, Sequence

from pairmill.pipeline.columns.added_columns import MODEL_CARD, column_sets
from pairmill.pipeline.columns.added_model import fingerprints
from pairmill.pipeline.columns.column_files import recorded_fingerprint
from pairmill.pipeline.columns.common_columns import DATASET
from pairmill.pipeline.columns.score_card import (
    NOTES,
    SCORE_CARD,
    SOURCES,
    ScoreCard,
    ScoreColumn,
    State,
    read_score_card,
    read_state,
    stored_states,
    write_state,
)
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.manifests import record_bytes
from pairmill.pipeline.dataset.subset import WEIGHT
from pairmill.pipeline.dataset.versions import versions
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kind import Needs, ScoreError, ScoreKind
from pairmill.pipeline.score.kinds import kind_of
from pairmill.pipeline.score.scan import shard_reader
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig
from pairmill.schemas.manifest import DataFile
from pairmill.schemas.pairs import is_own_column

_FILES = "files"
"""Key of the state's value with the checksums of the user's files."""
_ROWS = "rows"
"""Key of the state's value with the number of rows in the dataset, if the state was made from all rows."""
_GROWTH = 2
"""Once the dataset has grown by this factor since the state was made, a note says so."""


def prepared(
    snapshot: Snapshot, name: str, score: ScoreConfig | None, tasks: Tasks, run: RunConfig, partial: bool = False
) -> ScoreCard:
    """The card of a score: the existing card, or a new one.

    `score`: None if the score must exist. `partial`: whether it may be prepared from an unfinished dataset.

    Raises ScoreError if a different score, a model or a column already has this name, if the user's files or the scores
    that it reads have changed, if it needs all rows but the dataset is unfinished, or if it cannot be prepared.
    """
    store = snapshot.store
    _check_no_model(snapshot, name)
    if score is not None:
        _restore_lost_card(snapshot, name, score)
    if store.exists(f"columns/{name}/{SCORE_CARD}"):
        card = read_score_card(store, name)
        if score is not None:
            _check_same(snapshot, card, score)
        check_sources(snapshot, card)
        return card
    resolved = kind_of(name, score or _card(snapshot, name).score).resolved(snapshot)
    kind = kind_of(name, resolved)
    _check_finished(snapshot, kind, partial)
    _check_free(snapshot, name, kind)
    return _new_card(snapshot, name, resolved, _state(snapshot, kind, tasks, run))


def withdraw(store: Store, card: ScoreCard) -> None:
    """Delete a score that no shard has, so that its name is free again."""
    store.delete(f"columns/{card.name}/{SCORE_CARD}")
    store.delete(card.state.path)


def notes(snapshot: Snapshot, card: ScoreCard) -> list[str]:
    """Notes for the user about the preparation of a score, one sentence each."""
    state, now = read_state(snapshot.store, card), snapshot.chunk.num_rows
    rows = state.values.get(_ROWS)
    if not isinstance(rows, int) or now < _GROWTH * rows:
        return state.notes
    return [
        *state.notes,
        f"compares all rows with those that the dataset had when the score was prepared ({rows:,} of the current "
        f"{now:,} rows); to compare with all of them, add the score under another name",
    ]


def planned_needs(snapshot: Snapshot, name: str, score: ScoreConfig | None) -> Needs:
    """The needs of a score before it is prepared. At that point, only the kind of worker is final.

    Raises ScoreError.
    """
    return kind_of(name, score or _card(snapshot, name).score).needs


def sources(snapshot: Snapshot, kind: ScoreKind) -> tuple[str, ...]:
    """The models and scores in `columns/` whose columns a score reads. Raises ScoreError if one is missing."""
    return shard_reader(snapshot, kind.needs.columns).sources


def _card(snapshot: Snapshot, name: str) -> ScoreCard:
    """The card of an existing score. Raises ScoreError if it does not exist."""
    if not snapshot.store.exists(f"columns/{name}/{SCORE_CARD}"):
        raise ScoreError(f"{snapshot.store.root} has no score {name!r}; use --score to say what to compute")
    return read_score_card(snapshot.store, name)


def _new_card(snapshot: Snapshot, name: str, score: ScoreConfig, state: State) -> ScoreCard:
    """Write the card and the state. Raises ScoreError if the name or a column has been taken in the meantime."""
    store, kind = snapshot.store, kind_of(name, score)
    card = _card_with(kind, name, score, write_state(store, name, state))
    path = f"columns/{name}/{SCORE_CARD}"
    _check_still_free(snapshot, kind, card, [] if store.exists(path) else [card.state.path])
    if not store.create(path, record_bytes(card, exclude_none=True)):
        other = read_score_card(store, name)  # another run was faster
        if other.state.path != card.state.path:
            store.delete(card.state.path)
        if other.fingerprint != card.fingerprint:
            raise ScoreError(f"another run has just added a different score {name!r}; {_elsewhere(snapshot, name)}")
        return other
    _check_still_free(snapshot, kind, card, [path, card.state.path])  # of two concurrent runs, one sees the other
    return card


def _card_with(kind: ScoreKind, name: str, score: ScoreConfig, state: DataFile) -> ScoreCard:
    columns = [ScoreColumn(name=column.name, type=str(column.type)) for column in kind.schema]
    return ScoreCard(name=name, score=score, columns=columns, state=state, versions=versions())


def _restore_lost_card(snapshot: Snapshot, name: str, score: ScoreConfig) -> None:
    """If there are values but no card, write the card again, with the state that the values were made with: a new state
    would differ if the dataset has grown. Raises ScoreError if the values are of a different score."""
    store, path = snapshot.store, f"columns/{name}/{SCORE_CARD}"
    if store.exists(path) or (fingerprint := recorded_fingerprint(store, name)) is None:
        return
    resolved = kind_of(name, score).resolved(snapshot)
    kind = kind_of(name, resolved)
    _check_free(snapshot, name, kind)
    for state in stored_states(store, name):
        card = _card_with(kind, name, resolved, state)
        if card.fingerprint == fingerprint:
            store.create(path, record_bytes(card, exclude_none=True))
            return
    if not store.exists(path):  # another run has not just added the score
        raise ScoreError(
            f"columns/{name} has values of a different score, or their state is lost; move it elsewhere first"
        )


def _check_still_free(snapshot: Snapshot, kind: ScoreKind, card: ScoreCard, written: Sequence[str]) -> None:
    """Raise ScoreError if the name or a column has been taken during the preparation, and delete `written`."""
    try:
        _check_no_model(snapshot, card.name)
        _check_free(snapshot, card.name, kind)
    except ScoreError:
        for path in written:
            snapshot.store.delete(path)
        raise


def _state(snapshot: Snapshot, kind: ScoreKind, tasks: Tasks, run: RunConfig) -> State:
    """Prepare the state, and record what it was made from. Raises ScoreError."""
    files, read = _checksums(snapshot, kind), sources(snapshot, kind)
    state = kind.prepare(snapshot, tasks, run)
    if _checksums(snapshot, kind) != files:
        raise ScoreError(f"{' or '.join(kind.files)} changed while it was being read; run the same command again")
    known: dict[str, object] = {_FILES: files, SOURCES: fingerprints(snapshot.added, read)}
    if kind.needs.all_rows:
        known[_ROWS] = snapshot.chunk.num_rows
        if missing := snapshot.unfinished_shards:
            shards = counted(missing, "planned shard")
            known[NOTES] = [*state.notes, f"was prepared from {snapshot.chunk.num_rows:,} rows, with {shards} missing"]
    return State(state.tensors, {**state.values, **{key: value for key, value in known.items() if value}})


def _check_finished(snapshot: Snapshot, kind: ScoreKind, partial: bool) -> None:
    """Raise ScoreError if the state would be made permanently from only part of the dataset."""
    if kind.needs.all_rows and snapshot.unfinished_shards and not partial:
        missing = counted(snapshot.unfinished_shards, "planned shard")
        raise ScoreError(
            f"{snapshot.store.root} is not finished: {missing} missing. This score would compare all rows, including "
            "later ones, only with the rows that exist now; first rerun the command that made the dataset, or "
            "compare only with the finished shards, with --set partial=true"
        )


def _check_no_model(snapshot: Snapshot, name: str) -> None:
    store = snapshot.store
    if store.exists(f"columns/{name}/{MODEL_CARD}"):
        raise ScoreError(f"{store.root} has a model with the alias {name!r}; choose another name for the score")


def _check_free(snapshot: Snapshot, name: str, kind: ScoreKind) -> None:
    """Raise ScoreError if another column, even an incomplete one, has the name of a column of the score."""
    taken = {column.lower() for column in snapshot.schema.names}
    taken |= {column for each in column_sets(snapshot.store) if each.name != name for column in each.columns}
    for column in kind.schema.names:
        if column.lower() in taken:
            raise ScoreError(
                f"{snapshot.store.root} already has a column {column!r}; choose another name for the score"
            )
        if is_own_column(column) or column in (DATASET, WEIGHT):  # of a mixture, or a subset with weights
            raise ScoreError(f"pairmill has its own column {column!r}; choose another name for the score")


def check_sources(snapshot: Snapshot, card: ScoreCard) -> None:
    """Raise ScoreError if a model or score that this score reads is gone or has been replaced by a different one."""
    where = f"columns/{card.name}"
    if missing := sorted(kind_of(card.name, card.score).needs.columns - set(snapshot.schema.names)):
        why = snapshot.added.missing(missing[0]) or f"{snapshot.store.root} lacks {missing[0]!r}; add it again"
        raise ScoreError(f"the score {card.name!r} is made from {', '.join(missing)}: {why}, or move {where} elsewhere")
    now = fingerprints(snapshot.added, sources(snapshot, kind_of(card.name, card.score)))
    recorded = read_state(snapshot.store, card).sources if now else {}
    for name in sorted(recorded.keys() & now.keys()):
        if recorded[name] != now[name]:
            raise ScoreError(
                f"the score {card.name!r} was made from a different {name!r}; add it again under another name, or move "
                f"{where} elsewhere first"
            )


def _check_same(snapshot: Snapshot, card: ScoreCard, score: ScoreConfig) -> None:
    """Raise ScoreError if a score differs from the existing one, or if its files have changed since."""
    resolved = kind_of(card.name, score).resolved(snapshot)
    if resolved != card.score:
        raise ScoreError(
            f"{snapshot.store.root} already has a different score {card.name!r}; {_elsewhere(snapshot, card.name)}. "
            "Differences:\n" + "\n".join(_differences(card.score, resolved))
        )
    recorded = read_state(snapshot.store, card).values.get(_FILES, {})
    now = _checksums(snapshot, kind_of(card.name, resolved))
    if recorded != now:
        files, what = " or ".join(now), "has changed" if all(now.values()) else "cannot be read or has changed"
        raise ScoreError(f"{files} {what} since the score {card.name!r} was added; {_elsewhere(snapshot, card.name)}")


def _elsewhere(snapshot: Snapshot, name: str) -> str:
    """Advice for a name that is taken: since a preset's scores cannot be renamed, it also names a folder to move."""
    return f"choose another name, or move {snapshot.store.path(f'columns/{name}')} elsewhere first"


def _checksums(snapshot: Snapshot, kind: ScoreKind) -> Mapping[str, str]:
    """The checksums of the user's files by path; "" for an unreadable file, which the kind itself explains better."""
    files, found = Files(snapshot.store.files.s3), dict[str, str]()
    for path in kind.files:
        try:
            found[path] = files.checksum(path)[0]
        except (OSError, ValueError):  # ValueError: NUL in the name
            found[path] = ""
    return found


def _differences(before: ScoreConfig, now: ScoreConfig) -> list[str]:
    if before.kind != now.kind:
        return [f"  {before.kind} in the dataset, {now.kind} now"]
    old, new = (getattr(each, each.kind).model_dump(mode="json") for each in (before, now))
    return [f"  {name}: {old[name]!r} in the dataset, {new[name]!r} now" for name in new if old[name] != new[name]]
