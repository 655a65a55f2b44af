"""Pixels of a picture -> what a model looks at, by open_clip's own recipe for that model.

The recipe is a torchvision Compose: steps that move pixels, then "to RGB, to floats, normalise". The first are done
here, once per picture, on 8-bit pixels (torch's vector code for that rounds as Pillow does, within one level of 255);
the last are arithmetic on whole batches, on the device.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import functional

from pairmill.pipeline.image.resize import Pixels


class ModelInput:
    """The recipe of one model. Safe to use from many threads."""

    def __init__(self, recipe: Any) -> None:
        *self._steps, _to_rgb, _to_tensor, normalize = recipe.transforms
        self.key = repr([(type(step).__name__, sorted(vars(step).items(), key=str)) for step in self._steps])
        """Equal for recipes that give equal pictures."""
        self._is_plain = all(isinstance(step, transforms.Resize | transforms.CenterCrop) for step in self._steps)
        self._mean = torch.tensor(normalize.mean).view(1, 3, 1, 1)
        self._std = torch.tensor(normalize.std).view(1, 3, 1, 1)

    def pixels_of(self, width: int, height: int) -> int:
        """Pixels that a picture has while it is resized, before it is cut."""
        sides = [step.size for step in self._steps if isinstance(getattr(step, "size", None), int)]
        longest = max(width, height) / min(width, height)
        return int(max(sides, default=0) ** 2 * longest)

    def picture(self, pixels: Pixels) -> torch.Tensor:
        """[height, width, 3] -> uint8 [3, side, side], resized and cut or filled."""
        if not self._is_plain:  # non-square inputs and SigLIP's "longest": rare, and written for Pillow only
            image = Image.fromarray(pixels)
            for step in self._steps:
                image = step(image)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if not pixels.flags.writeable:  # Pillow's own memory; torch warns of it
            pixels = pixels.copy()
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)  # a view; its memory stays [height, width, 3]
        for step in self._steps:
            if isinstance(step, transforms.Resize):
                size = [step.size] if isinstance(step.size, int) else list(step.size)
                tensor = functional.resize(tensor, size, step.interpolation, antialias=True)
            else:
                tensor = functional.center_crop(tensor, list(step.size))
        return tensor

    def batch(self, pictures: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """uint8 [n, 3, side, side] on any device -> normalised, in the model's dtype."""
        mean, std = self._mean.to(pictures.device), self._std.to(pictures.device)
        return ((pictures.float() / 255 - mean) / std).to(dtype)
