"""Corrects how Pillow reads the alpha of BMPs. Source: BITMAPV3INFOHEADER and later (Microsoft, Windows GDI)."""

import struct

from PIL import BmpImagePlugin

_BITS_AND_COMPRESSION, _MASKS = 28, 54  # offsets in the file
_WITH_ALPHA_MASK = 56
"""Size of the smallest header that has a mask for alpha."""
_BIT_FIELDS = 3
_ONE_BIT_OF_ALPHA = (0x7C00, 0x03E0, 0x001F, 0x8000)


def apply_alpha_mask(opened: BmpImagePlugin.BmpImageFile, body: bytes) -> None:
    """Make Pillow read the alpha of pixels with 16 bits: their mask for alpha is the only one that it ignores."""
    (header_bytes,) = struct.unpack_from("<I", body, 14)
    if header_bytes < _WITH_ALPHA_MASK or struct.unpack_from("<HI", body, _BITS_AND_COMPRESSION) != (16, _BIT_FIELDS):
        return
    if struct.unpack_from("<4I", body, _MASKS) == _ONE_BIT_OF_ALPHA:
        opened._mode = "RGBA"
        opened.tile = [tile._replace(args=("BGRA;15", *(tile.args or ())[1:])) for tile in opened.tile]
