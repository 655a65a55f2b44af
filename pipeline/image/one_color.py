"""Detects pictures of a single color, such as placeholders."""

import numpy as np

from pairmill.pipeline.image.resize import Pixels

TOLERANCE = 8
"""How much the pixels of a single-color picture may differ, out of 255 levels; JPEG ringing stays below this."""


def is_one_color(pixels: Pixels) -> bool:
    """Whether no channel of uint8 [height, width, 3] varies by more than the tolerance."""
    sparse = pixels[:: max(1, pixels.shape[0] // 16), :: max(1, pixels.shape[1] // 16)]
    if int(sparse[..., 1].max()) - int(sparse[..., 1].min()) > TOLERANCE:
        return False  # for nearly every picture, a few green pixels suffice
    rows = pixels.reshape(len(pixels), -1)  # reducing whole rows first takes a tenth of the time
    highest, lowest = (each.reshape(-1, 3) for each in (rows.max(axis=0), rows.min(axis=0)))
    return not np.any(highest.max(axis=0) - lowest.min(axis=0) > TOLERANCE)
