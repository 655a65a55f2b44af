"""THE place where pixels become the stored picture: JPEG, PNG or WebP without any metadata."""

import cv2
import numpy as np
import simplejpeg

from pairmill.pipeline.image.decode import ImageError, ImageHeader
from pairmill.pipeline.image.resize import Pixels
from pairmill.pipeline.image.strip import strip_metadata
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status

_PNG_LEVEL = 6  # zlib's own default

# libjpeg's JPEG_MAX_DIMENSION, libwebp's WEBP_MAX_DIMENSION, and libpng's default limit.
_MAX_SIDE = {"jpg": 65_500, "webp": 16_383, "png": 1_000_000}

_PILLOW_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def compress(pixels: Pixels, config: ImagesConfig, chroma: str) -> bytes:
    """uint8 [height, width, 3] -> an encoded file. Because this function receives only pixels, no EXIF, XMP,
    GPS or ICC data can slip through.

    Raises ImageError if the picture is too large for the format.
    """
    height, width = pixels.shape[:2]
    if max(width, height) > _MAX_SIDE[config.format]:
        raise ImageError(Status.IMAGE_UNSUPPORTED, f"{width} x {height} cannot be stored as {config.format}")
    if config.format == "jpg":
        jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), config.quality, "RGB", chroma)
        return jpeg
    is_webp = config.format == "webp"
    options = [cv2.IMWRITE_WEBP_QUALITY, config.quality] if is_webp else [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL]
    _, encoded = cv2.imencode(f".{config.format}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return encoded.tobytes()


def original_without_metadata(body: bytes, header: ImageHeader, config: ImagesConfig) -> bytes | None:
    """A PNG or WebP without its metadata but with the same compressed pixels; None if the picture has to be encoded
    again. For JPEG, see passthrough.py."""
    if config.reencode == "always" or header.format == "JPEG" or header.format != _PILLOW_NAMES[config.format]:
        return None
    return strip_metadata(body, header.format)
