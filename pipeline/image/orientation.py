"""THE place where the EXIF orientation is read and applied. Cameras store pictures in the orientation of the sensor."""

import cv2
import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from pairmill.pipeline.image.resize import Pixels

NORMAL_ORIENTATION = 1
"""The orientation (EXIF 2.3, tag 0x0112, values 1 to 8) of a picture that is shown as it is stored."""

_ROTATIONS = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
_FLIPS = {2: 1, 4: 0}  # orientation -> OpenCV's flip code: around the vertical axis, around the horizontal axis
_TRANSVERSE = 7


def read_exif_orientation(opened: Image.Image) -> int:
    """The EXIF or XMP orientation, 1 to 8; 1 if the metadata is broken, which is no reason to lose the picture."""
    try:
        # Pillow's method for PNG decodes the pixels to read the chunks after them; png.py has already read those
        exif = Image.Image.getexif(opened) if isinstance(opened, PngImagePlugin.PngImageFile) else opened.getexif()
        value = exif.get(ExifTags.Base.Orientation, NORMAL_ORIENTATION)
    except Exception:  # parsers can raise anything for hostile bytes
        return NORMAL_ORIENTATION
    return value if isinstance(value, int) and 1 <= value <= 8 else NORMAL_ORIENTATION


def swaps_sides(orientation: int) -> bool:
    """Whether applying this orientation swaps width and height."""
    return orientation >= 5


def apply_exif_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels as a viewer shows them: uint8 [height, width, 3] -> [width, height, 3] for orientations 5 to 8."""
    if orientation == NORMAL_ORIENTATION:
        return pixels
    if orientation in _ROTATIONS:
        upright = cv2.rotate(pixels, _ROTATIONS[orientation])
    elif orientation in _FLIPS:
        upright = cv2.flip(pixels, _FLIPS[orientation])
    else:
        upright = cv2.transpose(pixels)
        if orientation == _TRANSVERSE:
            upright = cv2.rotate(upright, cv2.ROTATE_180)
    return np.asarray(upright, dtype=np.uint8)
