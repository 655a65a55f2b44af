"""Defines the steps of a select job."""

from difflib import get_close_matches
from typing import Annotated, Self

from pydantic import Field, model_validator

from pairmill.schemas.balance import Balance
from pairmill.schemas.known import Known
from pairmill.schemas.leak import Leak
from pairmill.schemas.repeat import Repeat
from pairmill.schemas.settings import GrowingSettings, Uri
from pairmill.schemas.share import Share

MAX_DISTANCES = {"phash": 8, "pdq": 31}
"""Columns of perceptual hashes -> the maximum `distance` of a dedup, in bits."""


class Top(Share):
    """The rows with the highest score. Null and NaN rank below every number; a hash of the uid breaks ties."""

    by: str
    """A column or a numeric expression such as `similarity_a + similarity_b`; `-width` keeps the narrowest pictures.
    Integers and decimals are compared exactly."""


class Sample(Share):
    """A random sample, drawn by a hash of the uid and the seed. With the same seed, larger samples contain smaller
    ones."""

    seed: int = 0
    """Seed of the sample."""


EMBEDDINGS = ("embedding", "text_embedding", "pair")
"""Values of `by` with which dedup compares a model's embeddings."""
DEFAULT_THRESHOLD = 0.95


class Dedup(GrowingSettings):
    """Keep one row of each group of duplicates. Null and NaN are never duplicates."""

    later = frozenset({"model", "threshold"})

    by: str
    """Column to compare: uid, url, sha256, phash, ... Rows with equal values are duplicates. With a `model`, the
    embeddings to compare: `embedding` (pictures), `text_embedding` (captions) or `pair` (both must be similar)."""
    model: str | None = None
    """Alias of the model whose embeddings are compared. Rows are duplicates if the cosine is at least `threshold`."""
    threshold: Annotated[float, Field(ge=0.8, le=1)] | None = None
    """Minimum cosine of duplicates, 0.95 by default. Only with a `model`."""
    distance: Annotated[int, Field(ge=0, le=31)] = 0
    """For `by: phash` (up to 8) and `by: pdq` (up to 31), the maximum distance in bits between duplicates. Each
    additional bit means more comparisons. Rows whose `pdq_quality` is below 50 are duplicates only if their hashes are
    equal."""
    best: str | None = None
    """Keep the row with the highest value of this column or expression. None: the first row in dataset order."""

    @model_validator(mode="after")
    def _one_kind_of_similarity(self) -> Self:
        if self.model is not None and self.by not in EMBEDDINGS:
            close = get_close_matches(self.by, EMBEDDINGS, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else f"; leave it out to compare {self.by!r}"
            raise ValueError(f"model works only with by: {', '.join(EMBEDDINGS)}{meant}")
        if self.threshold is not None and self.model is None:
            raise ValueError(f"threshold is for embeddings; add model: ALIAS, with by: {', '.join(EMBEDDINGS)}")
        if self.distance and self.model is not None:
            raise ValueError("distance is for hashes; embeddings have a threshold, such as threshold: 0.95")
        return self

    @model_validator(mode="after")
    def _distance_needs_a_hash(self) -> "Dedup":
        if self.distance and self.by not in MAX_DISTANCES:
            raise ValueError("distance works only with by: phash and by: pdq, the columns of perceptual hashes")
        if self.distance > MAX_DISTANCES.get(self.by, 0):
            raise ValueError(f"distance must be at most {MAX_DISTANCES[self.by]} with by: {self.by}")
        return self


class SelectStep(GrowingSettings):
    """One step of a select job; exactly one of the fields is set."""

    later = frozenset({"uids", "balance", "repeat", "known", "leak"})

    where: str | None = None
    """Keep rows for which this expression is true, such as `similarity >= 0.28 and width >= 200`. Null counts as
    false."""
    top: Top | None = None
    """Keep the rows with the highest score."""
    dedup: Dedup | None = None
    """Keep one row of each group of duplicates."""
    sample: Sample | None = None
    """Keep a random sample."""
    uids: Uri | None = None
    """Keep the rows whose uid is in this file, local or `s3://`: a Parquet file with a column `uid`, such as one that
    `pairmill search --save` writes, or a text file (`.txt` or `.txt.gz`) with one uid per line, as 32 hex digits or a
    UUID."""
    known: Known | None = None
    """Drop the rows that are in another dataset or a list. A path alone is enough."""
    leak: Leak | None = None
    """Drop the rows that overlap with an evaluation set. A path alone is enough."""
    balance: Balance | None = None
    """Thin out frequent concepts, classes, languages, hosts or clusters."""
    repeat: Repeat | None = None
    """Give each row a weight: how many times it is shown per epoch. Only one step of a job can do this."""

    @model_validator(mode="after")
    def _one_kind(self) -> "SelectStep":
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            kinds = " and ".join(", ".join(type(self).model_fields).rsplit(", ", 1))
            raise ValueError(f"a step must be one of {kinds}; write each step as a separate list item")
        return self

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def count(self) -> int | None:
        """The number of rows that the step should leave, if it sets a count."""
        shares = (self.top, self.sample, self.balance.curve if self.balance else None)
        return next((share.count for share in shares if isinstance(share, Share)), None)

    @property
    def files(self) -> list[str]:
        """Files and folders that the step reads in addition to the dataset. They must exist where the job runs."""
        entries, known = self.balance.entries if self.balance else None, self.known.path if self.known else None
        against = self.leak.against if self.leak else None
        return [uri for uri in (self.uids, entries, known, against) if uri is not None]

    def __str__(self) -> str:
        step = getattr(self, self.kind)
        if isinstance(step, str):
            return f"{self.kind}: {step}"
        options = step.model_dump(exclude_defaults=True)
        by = {"by": options.pop("by")} if "by" in options else {}  # shown first
        path = [options.pop(name) for name in ("path", "against") if name in options]
        settings = [f"{name} {_in_words(value)}" for name, value in (by | options).items()]
        return f"{self.kind}: " + ", ".join([*path, *settings])


def _in_words(value: object) -> str:
    """The value of a setting as text. Nested settings look like YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {each}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)
