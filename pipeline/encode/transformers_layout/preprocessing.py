"""Reads preprocessor_config.json, which says how to resize, crop and normalize pictures for a model.

`pairmill.pipeline.image` converts pixels to RGB, as for any model. The defaults are those of CLIPImageProcessor and
SiglipImageProcessor in transformers 5.24, with the model's size.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.transformers_layout.config import Config, first_problem, read_json

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
"""transformers 5 writes the second file for a whole processor. If both exist, the first takes precedence."""
Side = Annotated[int, Field(ge=1, le=4096)]
_Level = Annotated[float, Field(ge=0, le=255)]
_Spread = Annotated[float, Field(gt=0, le=255)]
_Channels = Field(min_length=3, max_length=3)
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class _Size(BaseModel):
    """A rectangle or the length of the shorter edge, in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    height: Side | None = None
    width: Side | None = None
    shortest_edge: Side | None = None


class Preprocessing(BaseModel):
    """The settings of an image processor."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    do_resize: Literal[True] = True
    size: _Size
    resample: Literal[2, 3] = 3
    """Bilinear (2) or bicubic (3), numbered as in Pillow."""
    do_center_crop: bool
    crop_size: _Size
    do_rescale: Literal[True] = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Annotated[list[_Level], _Channels]
    image_std: Annotated[list[_Spread], _Channels]

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every result. None if the size differs between pictures or pictures are padded."""
        size, crop = self.size, self.crop_size
        if size.shortest_edge and (size.height or size.width):
            return None
        least = (size.height or size.shortest_edge or 0, size.width or size.shortest_edge or 0)
        if not self.do_center_crop:
            return None if size.shortest_edge else least
        wanted = (crop.height or 0, crop.width or 0)
        return wanted if 0 < wanted[0] <= least[0] and 0 < wanted[1] <= least[1] else None

    @field_validator("rescale_factor")
    @classmethod
    def _is_of_bytes(cls, factor: float) -> float:
        if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ValueError("only 1/255 is supported")
        return factor


def read_preprocessing(folder: Path, config: Config) -> Preprocessing:
    """The settings in preprocessor_config.json or processor_config.json. Raises ModelError if pairmill does not support
    them."""
    side, is_clip = config.vision_config.image_size, config.model_type == "clip"
    square = {"height": side, "width": side}
    values: dict[str, object] = {
        "size": {"shortest_edge": side} if is_clip else square,
        "do_center_crop": is_clip,
        "crop_size": square,
        "image_mean": _CLIP_MEAN if is_clip else [0.5] * 3,
        "image_std": _CLIP_STD if is_clip else [0.5] * 3,
        **_stored(folder),
    }
    if isinstance(values["size"], int):  # files from before transformers 4.23
        edge = values["size"]
        values["size"] = {"shortest_edge": edge} if is_clip else {"height": edge, "width": edge}
    if isinstance(values["crop_size"], int):
        values["crop_size"] = {"height": values["crop_size"], "width": values["crop_size"]}
    if not values["do_center_crop"]:
        values["crop_size"] = {}
    try:
        found = Preprocessing.model_validate(values)
    except ValidationError as error:
        raise ModelError(f"{folder}: preprocessing settings: {first_problem(error)}") from None
    if found.output_size != (side, side):
        raise ModelError(
            f"{folder}: the preprocessing settings do not produce the {side} x {side} pixels that the model in "
            "config.json needs"
        )
    return found


def _stored(folder: Path) -> dict[str, object]:
    """The settings stored in the folder, without nulls."""
    own, shared = folder / PREPROCESSOR, folder / PROCESSOR
    values = read_json(own) if own.is_file() else {}
    if not values and shared.is_file():
        nested = read_json(shared).get("image_processor")
        values = nested if isinstance(nested, dict) else {}
    return {key: _without_nulls(value) for key, value in values.items() if value is not None}


def _without_nulls(value: Any) -> Any:
    return {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else value
