"""THE place where bytes become pixels: refuses decompression bombs by their headers, then decodes to 8-bit RGB, rotated
for display.

Only one parser sees the bytes: the one that matches their magic number. simplejpeg (libjpeg-turbo) decodes JPEGs, nine
pictures in ten, at a half, a quarter or an eighth of their size if that leaves enough pixels. Pillow decodes the JPEGs
that simplejpeg refuses, and all other formats except most WebPs (webp.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

import cv2
import numpy as np
import simplejpeg
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin

from pairmill.pipeline.common.text import clean_text, describe
from pairmill.pipeline.image import sniff
from pairmill.pipeline.image.bmp import apply_alpha_mask
from pairmill.pipeline.image.bounded_stream import BoundedStream, TooManyReads
from pairmill.pipeline.image.color import color_space
from pairmill.pipeline.image.cost import Cost, budget, decoding_cost, machine_has, picture_cost
from pairmill.pipeline.image.orientation import (
    NORMAL_ORIENTATION,
    apply_exif_orientation,
    read_exif_orientation,
    swaps_sides,
)
from pairmill.pipeline.image.png import PngFile, read_png
from pairmill.pipeline.image.resize import Pixels, Target
from pairmill.pipeline.image.rgb import Samples, UnsupportedMode, has_alpha, over_white_by_key, to_rgb
from pairmill.pipeline.image.salvage import without_metadata
from pairmill.pipeline.image.strip import webp_size
from pairmill.pipeline.image.tiff import TiffFile, read_tiff
from pairmill.pipeline.image.unsupported import unsupported_kind
from pairmill.pipeline.image.webp import StillWebp, first_frame, read_still_webp, with_announced_alpha
from pairmill.schemas.status import Status

_OVERSAMPLING = 2.8
"""A JPEG decoded at reduced scale keeps at least this many pixels per target pixel on each side; area averaging does
the rest. With 3, pictures shrunk from 3,000 px to 512 would just miss being decoded at half size and take 1.3 times as
long. Compared with full decoding of 444 web photographs shrunk to 64 px, 2 gives a median PSNR of 38 dB (32 at the
5th percentile), and 3 gives 42 (34); Pillow's Lanczos instead of area averaging gives 36 (33)."""

_SPACES = {"CM": "CMYK", **dict.fromkeys(("1", "L", "LA", "La", "F", "I", "I;"), "GRAY")}
"""ICC's name for the color space of a Pillow mode, by the mode's first two letters."""


class ImageError(Exception):
    """Raised to refuse a picture with a Status."""

    def __init__(self, status: Status, detail: str | None) -> None:
        super().__init__(status.value, detail)
        self.status = status
        self.detail = detail


@dataclass(slots=True)
class ImageHeader:
    """What is known before any pixel is decoded. The size is in pixels as stored, before the orientation is applied."""

    format: str
    """Pillow's name: JPEG, PNG, ..."""
    width: int
    height: int
    cost: Cost
    """The most memory and CPU time that decoding can take."""
    orientation: int = NORMAL_ORIENTATION
    chroma: str = "420"
    """Chroma subsampling; 4:2:0 would smear the edges of a picture that was stored as 4:4:4."""
    samples: Samples = field(default_factory=Samples)
    """The meaning of a grayscale picture's values."""
    key: tuple[int, ...] | None = None
    """The transparent color of an RGB PNG with 16 bits per channel, which Pillow cannot compare."""
    space: str = "RGB "
    """Color space of the pixels, as ICC profiles name it."""

    @property
    def displayed_size(self) -> tuple[int, int]:
        """(width, height) once the orientation is applied."""
        return (self.height, self.width) if swaps_sides(self.orientation) else (self.width, self.height)


def open_image(
    body: bytes, max_pixels: int, reserve: Callable[[float], None] = lambda num_bytes: None
) -> tuple[ImageHeader, Image.Image]:
    """Read the header and refuse decompression bombs, without allocating pixels. The caller closes the image.

    `reserve` is called with the number of bytes that opening and decoding take, before they are allocated. Raises
    ImageError with image_unsupported, image_bomb or image_corrupt.
    """
    found = sniff.image_format(body[: sniff.FORMAT_HEAD_BYTES])
    if found not in sniff.DECODED or found is None:
        raise ImageError(Status.IMAGE_UNSUPPORTED, (found or sniff.text_kind(body) or "no known format").lower())
    allowed = budget(max_pixels)
    if found == "WEBP":  # its decoder allocates canvases while opening
        if (size := webp_size(body)) is None:
            raise ImageError(Status.IMAGE_CORRUPT, "unreadable WEBP header")
        cost = decoding_cost("WEBP", "RGBA", size)
        _refuse_bomb(size, cost, max_pixels)
        reserve(cost.memory_bytes)
    png = read_png(body) if found == "PNG" else None
    if png is not None and png.fault is not None:
        kind = unsupported_kind(body, "PNG")
        raise ImageError(Status.IMAGE_UNSUPPORTED if kind else Status.IMAGE_CORRUPT, kind or png.fault)
    still = read_still_webp(body) if found == "WEBP" else None
    opened = still or _open(png.pixels if png else body, found, allowed)
    try:
        header = _header(body, found, opened, png)
        _refuse_bomb(opened.size, header.cost, max_pixels)
    except ImageError:
        opened.close()
        raise
    if found != "WEBP":
        reserve(header.cost.memory_bytes)
    return header, opened


def _open(body: bytes, found: str, allowed: Cost) -> Image.Image:
    """Open a picture; if that fails, try again with less metadata: broken metadata is no reason to lose the picture."""
    if found in ("GIF", "AVIF"):
        # always: after an empty extension of a GIF, Pillow takes whatever follows for another extension, and for AVIFs,
        # it obeys an orientation in XMP
        body = next(without_metadata(body, found), body)
    try:
        return _open_as_is(body, found, allowed)
    except ImageError as error:
        failure = error
    for reduced in without_metadata(body, found):
        if failure.status is not Status.IMAGE_CORRUPT:
            break
        try:
            return _open_as_is(reduced, found, allowed)
        except ImageError as error:
            failure = error
    raise failure


def _open_as_is(body: bytes, found: str, allowed: Cost) -> Image.Image:
    if found == "WEBP":
        body = with_announced_alpha(body)
    try:
        opened = read_tiff(body) if found == "TIFF" else Image.open(BoundedStream(body), formats=[found])
        if isinstance(opened.fp, BoundedStream):
            opened.fp.unbound()
        if isinstance(opened, BmpImagePlugin.BmpImageFile):
            apply_alpha_mask(opened, body)
        return opened
    except (Image.DecompressionBombError, TooManyReads) as error:
        raise ImageError(Status.IMAGE_BOMB, clean_text(str(error))) from error
    except UnsupportedMode as error:
        raise ImageError(Status.IMAGE_UNSUPPORTED, str(error)) from error
    except MemoryError as error:
        raise _out_of_memory(allowed) from error
    except Exception as error:  # parsers can raise anything for hostile bytes: struct.error, IndexError, ...
        if (kind := unsupported_kind(body, found)) is not None:
            raise ImageError(Status.IMAGE_UNSUPPORTED, kind) from error
        detail = f"unreadable {found} header" if isinstance(error, OSError) else describe(error)
        raise ImageError(Status.IMAGE_CORRUPT, detail) from error


def _out_of_memory(cost: Cost) -> Exception:
    """The error to raise after a MemoryError: one that rejects the picture if the picture is the cause, otherwise one
    that fails the shard.
    """
    if machine_has(cost):
        return ImageError(Status.IMAGE_BOMB, "takes more memory than its header indicates")
    return MemoryError(f"{cost.memory_bytes / 1e6:,.0f} MB for one picture are not available")


def _refuse_bomb(size: tuple[int, int], cost: Cost, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(Status.IMAGE_BOMB, f"{width} x {height} pixels")
    if (excess := cost.excess(budget(max_pixels))) is not None:
        raise ImageError(Status.IMAGE_BOMB, excess)


def _header(body: bytes, found: str, opened: Image.Image, png: PngFile | None) -> ImageHeader:
    """The header of an opened picture."""
    header = ImageHeader(found, *opened.size, cost=picture_cost(body, found, opened, png))
    header.space = _SPACES.get(opened.mode[:2], "RGB ")
    if isinstance(opened, TiffFile):
        header.samples = opened.samples
    if png is not None:
        opened.info.update(png.info)
        header.space = "GRAY" if png.is_gray else "RGB "
        _set_key(header, opened, png)
    header.orientation = read_exif_orientation(opened)
    header.chroma = _chroma(found, opened, swaps_sides(header.orientation))
    return header


def _set_key(header: ImageHeader, opened: Image.Image, png: PngFile) -> None:
    """Set the transparent color: on Pillow's scale for up to 8 bits, on the file's own scale for 16."""
    if png.key is None:
        return
    if png.bit_depth == 16:
        if len(png.key) == 1:
            header.samples = Samples(16, key=png.key[0])
        else:
            header.key = png.key
        return
    scaled = tuple(value * 255 // ((1 << png.bit_depth) - 1) for value in png.key)
    opened.info["transparency"] = scaled[0] if len(scaled) == 1 else scaled


def decode_pixels(body: bytes, header: ImageHeader, opened: Image.Image, target: Target | None) -> Pixels:
    """Bytes -> uint8 [height, width, 3], RGB, with the EXIF orientation applied. A JPEG can be decoded at reduced scale
    if `target` is smaller.

    Frees Pillow's copy of the pixels. Raises ImageError.
    """
    pixels = None
    if header.format == "JPEG" and opened.mode in ("RGB", "L"):
        pixels = _decode_jpeg(body, header, target)
    elif isinstance(opened, StillWebp) and (pixels := opened.decode()) is None:
        opened = _open(body, "WEBP", header.cost)  # for Pillow's opinion
    if pixels is None:
        pixels = _decode_with_pillow(body, header, opened)
    return apply_exif_orientation(pixels, header.orientation)


def color_profile(header: ImageHeader, opened: Image.Image) -> bytes | None:
    """The ICC profile to apply to the decoded pixels. For CMYK, and for pictures with alpha, it is applied while
    decoding instead."""
    return None if opened.mode == "CMYK" or has_alpha(opened) else _profile(header, opened)


def _profile(header: ImageHeader, opened: Image.Image) -> bytes | None:
    """The picture's ICC profile. As in browsers, it is ignored if it is for a color space other than the pixels'."""
    profile = opened.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and color_space(profile) == header.space else None


def _chroma(format: str, opened: Image.Image, is_turned: bool) -> str:
    """The chroma subsampling to store: the source's, once the picture is upright. 4:2:0 stays 4:2:0."""
    if format == "WEBP":
        return "420"  # lossy WebP has no other
    if not isinstance(opened, JpegImagePlugin.JpegImageFile) or opened.mode == "CMYK":
        return "444"
    layers = opened.layer[:3]  # (name, factor across, factor down, ...) for each component
    if len(layers) < 3:  # gray
        return "420"
    brightness, blue, red = layers
    across, down = float(brightness[1]), float(brightness[2])
    if blue[1:3] != (1, 1) or red[1:3] != (1, 1):  # unusual
        across, down = (min(brightness[side] / max(layer[side], 1) for layer in (blue, red)) for side in (1, 2))
    return chroma_of(down, across) if is_turned else chroma_of(across, down)


def chroma_of(across: float, down: float) -> str:
    """The standard subsampling that is fine enough for chroma that is `across` and `down` times as coarse as the
    brightness. Unusual sampling factors can mean the same: 1x2, 1x2, 1x2 is 4:4:4 too."""
    if down >= 2:
        return "420" if across >= 2 else "440"
    return "411" if across >= 4 else "422" if across >= 2 else "444"


def _decode_jpeg(body: bytes, header: ImageHeader, target: Target | None) -> Pixels | None:
    """The fast path: uint8 [height, width, 3], RGB; None if Pillow has to decode the file."""
    min_width = min_height = 0  # full size
    if target is not None:
        min_width, min_height = math.ceil(_OVERSAMPLING * target.width), math.ceil(_OVERSAMPLING * target.height)
        if swaps_sides(header.orientation):
            min_width, min_height = min_height, min_width
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            body,
            "RGB",
            min_width=min_width,
            min_height=min_height,
            min_factor=2.0,  # scales such as 7/8 take longer than full size
        )
    except ValueError:  # truncated, corrupt, or rare
        return None
    return _halve(pixels, min_width, min_height)


def _halve(pixels: Pixels, min_width: int, min_height: int) -> Pixels:
    """Halve the picture while more than enough pixels remain: averaging by exactly 2 is ten times as fast as by
    other factors."""
    height, width = pixels.shape[:2]
    while min_width and width >= min_width * 4 / 3 and height >= min_height * 4 / 3:
        if width % 2 or height % 2:
            break
        width, height = width // 2, height // 2
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return pixels


def _decode_with_pillow(body: bytes, header: ImageHeader, opened: Image.Image) -> Pixels:
    """Decode with Pillow. Closes `opened`, which frees Pillow's copy of the pixels."""
    try:
        opened.load()
        if header.format == "BMP" and opened.mode == "RGBA" and opened.getchannel("A").getextrema() == (0, 0):
            opened.putalpha(255)  # Photoshop's V3 files, for example: as in browsers and Windows, not all transparent
        pixels = to_rgb(opened, header.samples, _profile(header, opened))
        opened.close()
        frame = first_frame(body) if header.format == "WEBP" else None
        if isinstance(opened, GifImagePlugin.GifImageFile):
            frame = opened.dispose_extent
        if frame is not None:
            _clear_around(pixels, frame)
        if header.key is not None:
            over_white_by_key(pixels, _low_bytes(body), header.key)
        return pixels
    except UnsupportedMode as error:
        raise ImageError(Status.IMAGE_UNSUPPORTED, str(error)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(Status.IMAGE_BOMB, clean_text(str(error))) from error
    except MemoryError as error:
        raise _out_of_memory(header.cost) from error
    except Exception as error:  # as in open_image
        if header.format == "JPEG" and (kind := unsupported_kind(body, "JPEG")) is not None:  # BMP was refused earlier
            raise ImageError(Status.IMAGE_UNSUPPORTED, kind) from error
        raise ImageError(Status.IMAGE_CORRUPT, describe(error)) from error


def _clear_around(pixels: Pixels, frame: tuple[int, int, int, int]) -> None:
    """Whiten, in place, the area outside the first frame (left, top, right, bottom) of a GIF or an animated WebP.

    GIF89a specifies a background color there, and RFC 9649 allows one, but browsers show the page. Pillow does the same
    only if a GIF's frame is transparent (Pillow#5548), or a WebP announces alpha."""
    left, top, right, bottom = frame
    pixels[:top] = pixels[bottom:] = 255
    pixels[:, :left] = pixels[:, right:] = 255


def _low_bytes(body: bytes) -> Pixels:
    """The low bytes of an RGB PNG with 16 bits per channel. Pillow keeps only the high bytes, so it is made to
    read the bytes in the opposite order."""
    with Image.open(BytesIO(read_png(body).pixels), formats=["PNG"]) as opened:
        opened.tile = [tile._replace(args="RGB;16L") for tile in opened.tile]
        opened.load()
        return np.asarray(opened)
