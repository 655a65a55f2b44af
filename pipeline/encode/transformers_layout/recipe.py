"""Turns preprocessing settings into the steps that `ModelInput` runs. The results match those of transformers' image
processors (those that use Pillow) to within one level of 255."""

from typing import Any

import torch
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from pairmill.pipeline.encode.transformers_layout.preprocessing import Preprocessing

_MODES = {2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}


class FloorCrop(transforms.CenterCrop):  # type: ignore[misc]
    """A center crop that rounds the offset down, as in transformers. torchvision rounds halves to even."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[..., height, width] -> [..., crop height, crop width]. The input must not be smaller than the crop."""
        (height, width), (tall, wide) = image.shape[-2:], self.size
        top, left = (height - tall) // 2, (width - wide) // 2
        return image[..., top : top + tall, left : left + wide]


def recipe(settings: Preprocessing) -> transforms.Compose:
    """The steps for `ModelInput`: resize and crop 8-bit pixels, convert to RGB and to floats, and normalize."""
    size, crop = settings.size, settings.crop_size
    edge = size.shortest_edge or (size.height, size.width)
    steps: list[Any] = [transforms.Resize(edge, _MODES[settings.resample])]
    if settings.do_center_crop:
        steps.append(FloorCrop((crop.height, crop.width)))
    mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else ([0.0] * 3, [1.0] * 3)
    return transforms.Compose([*steps, torch.nn.Identity(), transforms.ToTensor(), transforms.Normalize(mean, std)])


def described(settings: Preprocessing) -> dict[str, object]:
    """The settings in the form of open_clip's `get_model_preprocess_cfg`, for the score contract."""
    normalize = recipe(settings).transforms[-1]
    return {
        "size": list(settings.output_size or ()),
        "mode": "RGB",
        "mean": list(normalize.mean),
        "std": list(normalize.std),
        "interpolation": _MODES[settings.resample].value,
        "resize_mode": "shortest" if settings.size.shortest_edge else "squash",
        "fill_color": 0,
    }
