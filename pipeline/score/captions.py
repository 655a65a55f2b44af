"""Scores captions by their language, length, readability, repetition and more (see `caption/measures.py`)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.common.files import Files, absolute
from pairmill.pipeline.dataset.chunks import Chunk, ShardFiles
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.caption import byte_model, measures
from pairmill.pipeline.score.caption.byte_model import ByteModel
from pairmill.pipeline.score.caption.measures import Measure
from pairmill.pipeline.score.embeddings import chosen_model
from pairmill.pipeline.score.kind import Needs, RowScore, ScoreError
from pairmill.pipeline.select.keys import SAMPLE, uid_hashes
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import CaptionsScore, ScoreConfig

_COLUMN = "caption_clean"
_MAX_LIST_BYTES = 16 << 20
_TERMS, _MODEL = "terms", "model"
"""Keys of the state's values."""

_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "language": {"language": pa.string(), "language_score": pa.float32()},
    "tokens": {"tokens": pa.int32(), "truncated": pa.bool_()},
    "words": {"words": pa.int32()},
    "characters": {"characters": pa.int32()},
    "readability": {"readability": pa.float32()},
    "repetition": {"repetition": pa.float32(), "word_repetition": pa.float32()},
    "digits": {"digits": pa.float32()},
    "special": {"special": pa.float32()},
    "alphanumeric": {"alphanumeric": pa.float32()},
    "capitals": {"capitals": pa.float32()},
    "relations": {"relations": pa.int32()},
    "boilerplate": {"boilerplate": pa.float32()},
    "toxic": {"toxic": pa.int32()},
    "bits_per_character": {"bits_per_character": pa.float32()},
}
"""Measure -> suffix of each column's name -> type of the column."""

_PLAIN: dict[str, Measure] = {
    "language": measures.language,
    "words": measures.words,
    "characters": measures.characters,
    "readability": measures.readability,
    "repetition": measures.repetition,
    "digits": measures.digits,
    "special": measures.special,
    "alphanumeric": measures.alphanumeric,
    "capitals": measures.capitals,
    "relations": measures.relations,
    "boilerplate": measures.boilerplate,
}
"""Measures that need no state."""


@dataclass(frozen=True)
class Captions:
    """The kind `captions`. Columns: NAME_MEASURE; null where the caption is null."""

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> CaptionsScore:
        """The settings of this kind."""
        assert self.score.captions is not None
        return self.score.captions

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Make the path absolute, and check the model."""
        settings = self.settings
        if not snapshot.plan.mapping.has_captions:
            raise ScoreError(f"{snapshot.store.root} has no captions")
        if settings.model is not None:
            chosen_model(snapshot, settings.model, "text")
        path = settings.toxic_words and absolute(settings.toxic_words)
        return ScoreConfig(captions=settings.model_copy(update={"toxic_words": path}))

    @property
    def needs(self) -> Needs:
        """The clean caption."""
        return Needs(frozenset({_COLUMN}), all_rows="bits_per_character" in self.settings.measures)

    @property
    def schema(self) -> pa.Schema:
        """The columns of each measure, in the order of the settings."""
        return pa.schema(
            [
                pa.field(f"{self.name}_{end}", kind)
                for measure in self.settings.measures
                for end, kind in _COLUMNS[measure].items()
            ]
        )

    @property
    def files(self) -> list[str]:
        """The list of toxic words."""
        return [path] if (path := self.settings.toxic_words) else []

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Prepare what the measures need: the toxic terms, the tokenizer's model, and the n-gram counts of a sample."""
        values: dict[str, object] = {}
        if self.settings.toxic_words is not None:
            values[_TERMS] = _read_terms(self.settings.toxic_words, Files(snapshot.store.files.s3))
        if self.settings.model is not None:
            contract = chosen_model(snapshot, self.settings.model, "text").contract
            values[_MODEL] = {"name": contract.name, "pretrained": contract.pretrained, "alias": contract.alias}
        if "bits_per_character" not in self.settings.measures:
            return State(values=values)
        return State(ByteModel.of(_sample(snapshot, tasks)).tensors, values)

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Measure rows with Arrow and NumPy."""
        found = {**_PLAIN, **_prepared_measures(self.settings, state)}
        return _OpenCaptions(self.schema, tuple(found[name] for name in self.settings.measures))


@dataclass(frozen=True)
class _OpenCaptions:
    schema: pa.Schema
    measures: tuple[Measure, ...]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the columns of all measures."""
        captions = measures.Captions(_texts(rows[_COLUMN]))
        return pa.table([array for measure in self.measures for array in measure(captions)], schema=self.schema)


def _prepared_measures(settings: CaptionsScore, state: State) -> dict[str, Measure]:
    """Measures that need a state."""
    found: dict[str, Measure] = {}
    if "toxic" in settings.measures:
        terms = state.values[_TERMS]
        assert isinstance(terms, list)
        found["toxic"] = measures.toxic(terms)
    if "tokens" in settings.measures:
        found["tokens"] = _tokens(state.values.get(_MODEL))
    if "bits_per_character" in settings.measures:
        found["bits_per_character"] = _bits_per_character(ByteModel(state.tensors))
    return found


def _tokens(model: Any) -> Measure:
    """A measure: (number of tokens, whether the model sees only part of the caption)."""
    from pairmill.pipeline.encode.count_tokens import token_counter

    count = token_counter(None if model is None else ModelConfig(**model))

    def tokens(captions: measures.Captions) -> list[pa.Array]:
        missing = captions.texts.is_null().to_numpy(zero_copy_only=False)
        counts, is_truncated = count(captions.texts.fill_null("").to_pylist())
        return [pa.array(counts, mask=missing), pa.array(is_truncated, mask=missing)]

    return tokens


def _bits_per_character(model: ByteModel) -> Measure:
    """A measure: the cross-entropy of the caption under the model; null for an empty caption."""

    def bits_per_character(captions: measures.Captions) -> list[pa.Array]:
        characters = captions.num_characters.fill_null(0).to_numpy(zero_copy_only=False)
        bits = model.bits(captions.texts.fill_null("")) / np.maximum(characters, 1)
        return [pa.array(bits.astype(np.float32), mask=characters == 0)]

    return bits_per_character


def _read_terms(path: str, files: Files) -> list[str]:
    """The terms in a file, sorted. Raises ScoreError."""
    try:
        with files.open(path) as file:
            data = file.read(_MAX_LIST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ScoreError(
            f"{path} cannot be read ({reason}); set toxic_words to a text file with one term per line"
        ) from None
    if len(data) > _MAX_LIST_BYTES:
        raise ScoreError(f"{path}: is larger than {_MAX_LIST_BYTES >> 20} MiB, too large for a list of words")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ScoreError(f"{path}: is not UTF-8 ({error}); save it as UTF-8, with one term per line") from None
    terms = {" ".join(line.split()) for line in lines if not line.startswith("#")} - {""}
    if not terms:
        raise ScoreError(f"{path}: has no terms; write one per line")
    try:
        measures.toxic(terms)(measures.Captions(pa.array([""])))
    except pa.ArrowInvalid as error:  # terms in scripts without spaces are joined into one regular expression
        raise ScoreError(f"{path}: has too many terms ({error}); use a shorter list") from None
    return sorted(terms)


def _sample(snapshot: Snapshot, tasks: Tasks) -> pa.Array:
    """A sample of about `SAMPLE_ROWS` captions, chosen by uid hashes. Raises ScoreError if there are none."""
    share = byte_model.SAMPLE_ROWS / max(snapshot.chunk.num_rows, 1)
    parts = list(tasks.get(tasks.map(_sample_shard, [(snapshot.chunk, each, share) for each in snapshot.chunk.shards])))
    captions = pa.concat_arrays(parts)
    if not len(captions):
        raise ScoreError(
            f"the sample of {snapshot.store.root} contains no captions to build a model from; leave out "
            "bits_per_character"
        )
    return captions


def _sample_shard(chunk: Chunk, shard: ShardFiles, share: float) -> pa.Array:
    rows = chunk.read(shard, frozenset({"uid", _COLUMN}))
    is_chosen = uid_hashes(rows["uid"], SAMPLE, 0) < share * 2.0**64
    texts = _texts(rows[_COLUMN].filter(pa.array(is_chosen))).drop_null()
    return pc.binary_slice(texts.cast(pa.binary()), 0, byte_model.SAMPLE_BYTES)


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().cast(pa.string())
