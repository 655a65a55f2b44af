"""Turns preprocessor_config.json into the steps that `ModelInput` runs, with the result of transformers' image
processors (the slow ones, with Pillow) to within one level of 255.

Pixels are converted to RGB by `pairmill.pipeline.image`, as for any model. The defaults are those of transformers'
CLIPImageProcessor and SiglipImageProcessor, with the model's size.
"""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.transformers_layout.checkpoint import Checkpoint
from pairmill.pipeline.encode.transformers_layout.config import first_problem, read_json

Side = Annotated[int, Field(ge=1, le=4096)]
PerChannel = Annotated[list[float], Field(min_length=3, max_length=3)]
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_MODES = {2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}  # Pillow's numbers


class _Size(BaseModel):
    """A rectangle, or the length of the shorter edge. Pixels."""

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
    """Bilinear or bicubic."""
    do_center_crop: bool
    crop_size: _Size
    do_rescale: Literal[True] = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: PerChannel
    image_std: PerChannel

    @field_validator("rescale_factor")
    @classmethod
    def _is_of_bytes(cls, factor: float) -> float:
        if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ValueError("only 1/255 is possible")
        return factor


class FloorCrop(transforms.CenterCrop):  # type: ignore[misc]
    """A center crop whose odd pixel is at the end, as in transformers; torchvision rounds to even."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[..., height, width], which must not be smaller than the crop -> [..., crop height, crop width]."""
        (height, width), (tall, wide) = image.shape[-2:], self.size
        top, left = (height - tall) // 2, (width - wide) // 2
        return image[..., top : top + tall, left : left + wide]


def preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """The settings in preprocessor_config.json or processor_config.json. Raises ModelError if pairmill cannot do it."""
    side, is_clip = checkpoint.config.vision_config.image_size, checkpoint.config.model_type == "clip"
    square = {"height": side, "width": side}
    values: dict[str, Any] = {
        "size": {"shortest_edge": side} if is_clip else square,
        "do_center_crop": is_clip,
        "crop_size": square,
        "image_mean": _CLIP_MEAN if is_clip else [0.5] * 3,
        "image_std": _CLIP_STD if is_clip else [0.5] * 3,
        **_stored(checkpoint),
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
        raise ModelError(f"{checkpoint.folder}: the settings of preprocessing: {first_problem(error)}") from None
    if _output_size(found) != (side, side):
        raise ModelError(
            f"{checkpoint.folder}: the settings of preprocessing do not give the {side} x {side} pixels that the model "
            "of config.json reads"
        )
    return found


def recipe(settings: Preprocessing) -> transforms.Compose:
    """The steps for `ModelInput`: those on 8-bit pixels, then to RGB, to floats, normalize."""
    size, crop = settings.size, settings.crop_size
    edge = size.shortest_edge or (size.height, size.width)
    steps: list[Any] = [transforms.Resize(edge, _MODES[settings.resample])]
    if settings.do_center_crop:
        steps.append(FloorCrop((crop.height, crop.width)))
    mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else ([0.0] * 3, [1.0] * 3)
    return transforms.Compose([*steps, torch.nn.Identity(), transforms.ToTensor(), transforms.Normalize(mean, std)])


def described(settings: Preprocessing) -> dict[str, Any]:
    """The settings in the words of open_clip's `get_model_preprocess_cfg`, for the score contract."""
    normalize = recipe(settings).transforms[-1]
    return {
        "size": list(_output_size(settings) or ()),
        "mode": "RGB",
        "mean": list(normalize.mean),
        "std": list(normalize.std),
        "interpolation": _MODES[settings.resample].value,
        "resize_mode": "shortest" if settings.size.shortest_edge else "squash",
        "fill_color": 0,
    }


def _stored(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the folder says; processor_config.json is what transformers 5 writes."""
    own, shared = (checkpoint.folder / name for name in ("preprocessor_config.json", "processor_config.json"))
    values = read_json(own) if own.is_file() else {}
    if not values and shared.is_file():
        nested = read_json(shared).get("image_processor")
        values = nested if isinstance(nested, dict) else {}
    return {key: _without_nulls(value) for key, value in values.items() if value is not None}


def _without_nulls(value: Any) -> Any:
    return {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else value


def _output_size(settings: Preprocessing) -> tuple[int, int] | None:
    """(height, width) of every picture's result; None if it differs from picture to picture, or is padded."""
    size, crop = settings.size, settings.crop_size
    least = (size.height or size.shortest_edge or 0, size.width or size.shortest_edge or 0)
    if not settings.do_center_crop:
        return None if size.shortest_edge else least
    wanted = (crop.height or 0, crop.width or 0)
    return wanted if 0 < wanted[0] <= least[0] and 0 < wanted[1] <= least[1] else None
