"""Defines the scores that are computed from the pixels of pictures, and their columns."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from pairmill.schemas.settings import Settings

Measure = Literal["sharpness", "exposure", "colorfulness", "jpeg_quality", "border", "pdq"]

MEASURES: tuple[Measure, ...] = get_args(Measure)

_COLUMNS: dict[Measure, dict[str, pa.DataType]] = {
    "sharpness": {"sharpness": pa.float32()},
    "exposure": {"exposure": pa.float32(), "exposure_dark": pa.float32(), "exposure_bright": pa.float32()},
    "colorfulness": {"colorfulness": pa.float32()},
    "jpeg_quality": {"jpeg_quality": pa.uint8()},
    "border": {"border": pa.float32()},
    "pdq": {"pdq": pa.string(), "pdq_quality": pa.uint8()},
}

_OF_ANY_NAME = ("pdq", "pdq_quality")
"""Columns whose names do not begin with the name of the score: lists of hashes and `dedup` expect these names."""


def _in_order(measures: list[Measure]) -> list[Measure]:
    """These measures without duplicates, in the order of the columns."""
    return [each for each in MEASURES if each in measures]


class PictureScore(Settings):
    """Measures of the picture itself, from one decode at 256 pixels on its longer side. Each has a column:
    NAME_sharpness, NAME_colorfulness, ..., but `pdq` without NAME. All are null if there is no picture or it does not
    decode."""

    measures: Annotated[list[Measure], Field(min_length=1), AfterValidator(_in_order)] = [
        each for each in MEASURES if each != "pdq"
    ]
    """`sharpness`: variance of the Laplacian of the brightness. `exposure`: the mean brightness, 0 to 1, and in
    NAME_exposure_dark and NAME_exposure_bright the shares of pixels that are clipped to black or white. `colorfulness`
    (Hasler and Suesstrunk): 0 for gray pictures, 60 or more for vivid ones. `jpeg_quality`: the libjpeg quality, 1 to
    100, with which the file was written; null for other formats. `border`: share of the area covered by bars or a frame
    of one color. `pdq`, off by default: the perceptual hash used by public lists, 64 hex digits, in the column `pdq`,
    and the amount of visible detail, 0 to 100, in `pdq_quality`. `pictures: pdq` is short for this field."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        value = {"measures": value} if isinstance(value, str | list) else value
        if isinstance(value, dict) and isinstance(value.get("measures"), str):
            value = {**value, "measures": [each.strip() for each in value["measures"].split(",")]}
        return value

    def columns(self, name: str) -> pa.Schema:
        """The columns of a score with this name."""
        types = {suffix: type_ for measure in self.measures for suffix, type_ in _COLUMNS[measure].items()}
        return pa.schema([(column, types[suffix]) for suffix, column in self.column_names(name).items()])

    def column_names(self, name: str) -> Mapping[str, str]:
        """Suffix of each measured value -> name of its column, in order."""
        suffixes = [suffix for measure in self.measures for suffix in _COLUMNS[measure]]
        return {suffix: suffix if suffix in _OF_ANY_NAME else f"{name}_{suffix}" for suffix in suffixes}


class BuildScore(Settings):
    """A score that a build computes for every pair when it decodes the picture. Its columns are in `pairs/`."""

    pictures: PictureScore
    """Measures of the picture itself."""


def used_measures(scores: Iterable[PictureScore]) -> list[Measure]:
    """The measures that any of these scores needs."""
    return _in_order([measure for score in scores for measure in score.measures])
