"""Defines the step `leak`, which drops rows that overlap with an evaluation set, and its report."""

import os
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from pairmill.schemas.settings import Settings, Uri

LeakKind = Literal["sha256", "phash", "pdq", "embedding"]
"""How rows are compared with evaluation pictures."""

Variant = Literal["same", "mirrored", "cropped", "mirrored_cropped"]
"""How the evaluation picture was changed before the comparison. `same`: not at all."""

DEFAULT_PHASH, DEFAULT_PDQ = 6, 31
"""Measured with `python -m bench.leak`: the phashes of different pictures differ in at least 10 bits."""
DEFAULT_THRESHOLD = 0.95
DEFAULT_KINDS: tuple[LeakKind, ...] = ("sha256", "phash")
VARIANTS: tuple[Literal["mirrored"], Literal["cropped"]] = ("mirrored", "cropped")
MAX_PAIRS = 6
"""Maximum number of pairs per kind and variant in a report."""


def _as_list(values: object) -> object:
    return [values] if isinstance(values, str) else values


class Leak(Settings):
    """Drop the rows whose picture is in an evaluation set, even if either is resized, re-encoded or mirrored, or if the
    row's is a crop. A path alone sets `against` and leaves the other settings at their defaults."""

    against: Uri
    """Output folder of a build or embed of the evaluation set. It must store the pictures or refer to them."""
    by: Annotated[list[LeakKind], BeforeValidator(_as_list), Field(min_length=1)] = list(DEFAULT_KINDS)
    """How pictures are compared; a row is dropped if any of these comparisons matches. `pdq` needs the column of that
    name, and `embedding` needs embeddings from the same weights in both datasets."""
    variants: Annotated[list[Literal["mirrored", "cropped"]], BeforeValidator(_as_list)] = list(VARIANTS)
    """For `phash` and `pdq`, also compare with mirrored or cropped copies of each evaluation picture and, if both are
    given, with copies that are both mirrored and cropped. Crops keep 80 to 95 % of each side. An evaluation picture
    that is itself a crop is found only by `embedding`."""
    rows: Literal["pairs", "kept"] = "pairs"
    """Which rows of the evaluation set count: its pairs and, by their SHA-256, its rejects; or only the pairs that its
    build kept."""
    phash: Annotated[int, Field(ge=0, le=8)] = DEFAULT_PHASH
    """Maximum distance, in bits, at which two phashes count as the same picture."""
    pdq: Annotated[int, Field(ge=0, le=31)] = DEFAULT_PDQ
    """Maximum distance, in bits, at which two PDQ hashes count as the same picture."""
    model: str | None = None
    """Alias of the model whose embeddings are compared. None: the dataset's only model."""
    other_model: str | None = None
    """Alias of the same model in the evaluation set. None: the same alias."""
    threshold: Annotated[float, Field(ge=0.5, le=1)] | None = None
    """With `embedding`, drop rows whose cosine with any evaluation picture is at least this, 0.95 by default."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"against": value} if isinstance(value, (str, os.PathLike)) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [name for name in ("model", "other_model", "threshold") if getattr(self, name) is not None]
        if given and "embedding" not in self.by:
            raise ValueError(f"{given[0]} works only with by: embedding")
        if self.phash != DEFAULT_PHASH and "phash" not in self.by:
            raise ValueError("phash works only with by: phash")
        if self.pdq != DEFAULT_PDQ and "pdq" not in self.by:
            raise ValueError("pdq works only with by: pdq")
        if not self.hashes and self.variants != list(VARIANTS):
            raise ValueError("variants works only with by: phash and by: pdq")
        return self

    @property
    def hashes(self) -> dict[LeakKind, int]:
        """The perceptual hashes to compare -> the maximum distance in bits."""
        distances: dict[LeakKind, int] = {"phash": self.phash, "pdq": self.pdq}
        return {kind: distances[kind] for kind in distances if kind in self.by}

    @property
    def all_variants(self) -> list[Variant]:
        """The variants of each evaluation picture to hash."""
        both = {"mirrored", "cropped"}.issubset(self.variants)
        return [each for each in get_args(Variant) if each == "same" or each in self.variants or both]


class LeakPair(Settings):
    """An evaluation picture and a row with the same picture."""

    item_row_id: str
    """Row id in the evaluation set."""
    item_uid: str
    item_url: str | None
    row_id: str
    url: str | None
    by: LeakKind
    variant: Variant
    distance: int | None = None
    """Distance in bits, for `phash` and `pdq`."""
    cosine: float | None = None
    """Cosine similarity, for `embedding`."""


class LeakCounts(Settings):
    """The number of matches for one kind and variant."""

    by: LeakKind
    variant: Variant
    rows: int
    """Rows that matched by this kind and variant first, so the sum over all of them is the number of matching rows."""
    items: int
    """Evaluation pictures with a match of this kind and variant. A picture can count for several kinds and variants."""


class LeakReport(Settings):
    """The overlap that a step `leak` found."""

    items: int
    """Evaluation pictures that were compared."""
    items_hit: int
    """Evaluation pictures that at least one row matches."""
    plain_items: int
    """Evaluation pictures with too little detail (a PDQ quality below 50), which were not compared by hashes."""
    rejected_items: int = 0
    """Evaluation pictures that were rejected when the evaluation set was made, and so were compared only by SHA-256."""
    missing_items: int = 0
    """Rejected pictures of the evaluation set that were not compared at all. They are not part of `items`."""
    hashes: dict[LeakKind, int]
    """Kind -> number of hashes of all variants, or number of embeddings."""
    found: list[LeakCounts]
    """Counts per kind and variant, in the order of the comparisons."""
    nearest: list[LeakPair]
    """The nearest pairs per kind and variant, at most MAX_PAIRS. Each evaluation picture is listed only for the first
    kind and variant that found it."""
    not_compared: dict[str, int] = {}
    """Kind -> number of rows without a usable embedding, or without a PDQ hash of sufficient quality. Omits zeros."""
    blake2b: str
    """BLAKE2b-128 of everything that rows were compared with."""
    earlier_blake2b: str | None = None
    """The `blake2b` of the previous selection of this subset, if it was different."""
