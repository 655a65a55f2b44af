"""Defines the step `leak`, which drops the rows that overlap with an evaluation set, and what it reports."""

import os
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from pairmill.schemas.settings import Settings, Uri

LeakKind = Literal["sha256", "phash", "pdq", "embedding"]
"""What rows and evaluation pictures are compared by."""

Variant = Literal["same", "mirrored", "cropped", "mirrored_cropped"]
"""What was done to the evaluation picture before it was compared. `same`: nothing."""

DEFAULT_PHASH, DEFAULT_PDQ = 6, 31
"""Measured with `python -m bench.leak`: pictures of others differ in 10 bits of phash or more."""
DEFAULT_THRESHOLD = 0.95
DEFAULT_KINDS: tuple[LeakKind, ...] = ("sha256", "phash")
VARIANTS: tuple[Literal["mirrored"], Literal["cropped"]] = ("mirrored", "cropped")
MAX_PAIRS = 6
"""How many pairs of each kind and variant a report names."""


def _as_list(values: object) -> object:
    return [values] if isinstance(values, str) else values


class Leak(Settings):
    """Drop the rows whose picture is in an evaluation set, also resized, re-encoded, mirrored or cropped. A path alone
    stands for all defaults."""

    against: Uri
    """Output folder of a build or embed of the evaluation set, which stores its pictures or refers to them."""
    by: Annotated[list[LeakKind], BeforeValidator(_as_list), Field(min_length=1)] = list(DEFAULT_KINDS)
    """What pictures are recognized by; a row that any of these finds is dropped. `pdq` needs the column of that name,
    and `embedding` embeddings by the same weights in both datasets."""
    variants: Annotated[list[Literal["mirrored", "cropped"]], BeforeValidator(_as_list)] = list(VARIANTS)
    """For `phash` and `pdq`, also compare with copies of each evaluation picture that are mirrored, cropped, or, if
    both are given, both at once. Crops have 80 to 95 % of each side."""
    rows: Literal["pairs", "kept"] = "pairs"
    """Which rows of the evaluation set count: its pairs, or only those that its build kept."""
    phash: Annotated[int, Field(ge=0, le=8)] = DEFAULT_PHASH
    """The greatest distance between hashes of the same picture, in bits."""
    pdq: Annotated[int, Field(ge=0, le=31)] = DEFAULT_PDQ
    """The same for `pdq`."""
    model: str | None = None
    """Alias of the model whose embeddings are compared; None: the only one."""
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
        """The perceptual hashes to compare -> the greatest distance in bits."""
        distances: dict[LeakKind, int] = {"phash": self.phash, "pdq": self.pdq}
        return {kind: distances[kind] for kind in distances if kind in self.by}

    @property
    def all_variants(self) -> list[Variant]:
        """What is hashed of each picture."""
        both = {"mirrored", "cropped"}.issubset(self.variants)
        return [each for each in get_args(Variant) if each == "same" or each in self.variants or both]


class LeakPair(Settings):
    """An evaluation picture, and a row with the same picture."""

    item_row_id: str
    """Of the evaluation set."""
    item_uid: str
    item_url: str | None
    row_id: str
    url: str | None
    by: LeakKind
    variant: Variant
    distance: int | None = None
    """In bits, by `phash` and `pdq`."""
    cosine: float | None = None
    """By `embedding`."""


class LeakCounts(Settings):
    """What was found in one way."""

    by: LeakKind
    variant: Variant
    rows: int
    """Rows that were first found in this way. So the sum over all ways is the number of rows found."""
    items: int
    """Evaluation pictures with such a row. One may be found in several ways."""


class LeakReport(Settings):
    """The overlap that a step found."""

    items: int
    """Evaluation pictures that were compared."""
    items_hit: int
    """Those with any overlap."""
    plain_items: int
    """Pictures with too little to see (a PDQ quality below 50), which were not compared by hashes."""
    hashes: dict[LeakKind, int]
    """Kind -> number of hashes of all variants, or of embeddings."""
    found: list[LeakCounts]
    """In the order of the comparisons."""
    nearest: list[LeakPair]
    """For each way, the nearest pairs, at most MAX_PAIRS. Each evaluation picture is named once, for the first way."""
    blake2b: str
    """BLAKE2b-128 of everything that rows were compared with."""
    earlier_blake2b: str | None = None
    """That when the subset was selected before, if it was another."""
