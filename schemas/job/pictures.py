"""Defines the scores that are computed from the pixels of pictures, and their columns."""

from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import pyarrow as pa
from pydantic import AfterValidator, Field

from pairmill.schemas.settings import Settings

Measure = Literal["sharpness", "exposure", "colorfulness", "jpeg_quality", "border"]

MEASURES: tuple[Measure, ...] = get_args(Measure)

_COLUMNS: dict[Measure, dict[str, pa.DataType]] = {
    "sharpness": {"sharpness": pa.float32()},
    "exposure": {"exposure": pa.float32(), "exposure_dark": pa.float32(), "exposure_bright": pa.float32()},
    "colorfulness": {"colorfulness": pa.float32()},
    "jpeg_quality": {"jpeg_quality": pa.uint8()},
    "border": {"border": pa.float32()},
}


def _in_order(measures: list[Measure]) -> list[Measure]:
    """Each once, in the order of the columns."""
    return [each for each in MEASURES if each in measures]


class PictureScore(Settings):
    """Measures of the picture itself, from one decode of it, at 256 pixels on its longer side. A column for each:
    NAME_sharpness, NAME_colorfulness, ...; all null if there is no picture, or it does not decode."""

    measures: Annotated[list[Measure], Field(min_length=1), AfterValidator(_in_order)] = list(MEASURES)
    """`sharpness`: variance of the Laplacian of the brightness. `exposure`: the mean brightness, 0 to 1, and in
    NAME_exposure_dark and NAME_exposure_bright the shares of pixels that are clipped to black or white. `colorfulness`
    after Hasler and Suesstrunk: 0 for gray, from 60 on for vivid pictures. `jpeg_quality`: libjpeg's quality, 1 to 100,
    that the file was written with; null for other formats. `border`: share of the area that is bars or a frame of one
    color."""

    def columns(self, name: str) -> pa.Schema:
        """The columns of a score with this name."""
        return pa.schema(
            [(f"{name}_{suffix}", type_) for measure in self.measures for suffix, type_ in _COLUMNS[measure].items()]
        )


class BuildScore(Settings):
    """A score that a build computes for every pair, from the one decode of its picture. Its columns are in `pairs/`."""

    pictures: PictureScore
    """Measures of the picture itself."""


def used_measures(scores: Iterable[PictureScore]) -> list[Measure]:
    """The measures that any of these scores needs."""
    return _in_order([measure for score in scores for measure in score.measures])
