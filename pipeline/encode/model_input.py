"""Turns the pixels of a picture into the input of a model, following open_clip's own recipe for that model.

The recipe is a torchvision Compose of steps that resize and crop, then "to RGB, to floats, normalize". The first part
runs here, once per picture, on 8-bit pixels (torch's vector code rounds like Pillow's, to within one level of 255). The
second part is arithmetic on whole batches on the device.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import functional

from pairmill.pipeline.image.resize import Pixels


class ModelInput:
    """The recipe of one model. Thread-safe."""

    def __init__(self, recipe: Any) -> None:
        *self._steps, _to_rgb, _to_tensor, normalize = recipe.transforms
        self.key = repr([(type(step).__name__, sorted(vars(step).items(), key=str)) for step in self._steps])
        """Equal for recipes that produce equal inputs."""
        self._is_plain = all(isinstance(step, transforms.Resize | transforms.CenterCrop) for step in self._steps)
        self._mean = torch.tensor(normalize.mean).view(1, 3, 1, 1)
        self._std = torch.tensor(normalize.std).view(1, 3, 1, 1)

    def resized_pixels(self, width: int, height: int) -> int:
        """Number of pixels of a picture of this size after resizing, before cropping."""
        sides = [step.size for step in self._steps if isinstance(getattr(step, "size", None), int)]
        longest = max(width, height) / min(width, height)
        return int(max(sides, default=0) ** 2 * longest)

    def prepare(self, pixels: Pixels) -> torch.Tensor:
        """uint8 [height, width, 3] -> uint8 [3, side, side], resized and cropped or padded."""
        if not self._is_plain:  # rare (non-square inputs, SigLIP's "longest"), so left to Pillow
            image = Image.fromarray(pixels)
            for step in self._steps:
                image = step(image)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if not pixels.flags.writeable:  # torch would warn because the memory belongs to Pillow
            pixels = pixels.copy()
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)  # a view: [3, height, width]
        for step in self._steps:
            if isinstance(step, transforms.Resize):
                size = [step.size] if isinstance(step.size, int) else list(step.size)
                tensor = functional.resize(tensor, size, step.interpolation, antialias=True)
            else:
                tensor = step(tensor)
        return tensor

    def normalize(self, inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """uint8 [n, 3, side, side] on any device -> the same shape in the model's dtype, normalized by mean and std."""
        mean, std = self._mean.to(inputs.device), self._std.to(inputs.device)  # [1, 3, 1, 1]
        return ((inputs.float() / 255 - mean) / std).to(dtype)
