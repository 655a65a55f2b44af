"""THE place where bytes become pixels, and pixels become the stored picture.

    bytes -> format by magic number -> size from the header, bombs refused -> RGB 8-bit, upright -> resized -> encoded

One parser sees the bytes, the one that their magic number names. JPEG, nine pictures in ten, is decoded by simplejpeg
(libjpeg-turbo), at a half, a quarter or an eighth where that leaves enough pixels; what it refuses, and all other
formats, goes to Pillow, which has the last word. All heavy calls release the GIL, so threads scale.
"""

import warnings
from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, JpegImagePlugin

from pairmill.pipeline.common.text import clean_text, describe
from pairmill.pipeline.image import sniff
from pairmill.pipeline.image.color import pixels_to_srgb
from pairmill.pipeline.image.phash import phash
from pairmill.pipeline.image.resize import Pixels, Target, plan, resize
from pairmill.pipeline.image.rgb import UnsupportedMode, to_rgb
from pairmill.pipeline.image.strip import strip
from pairmill.schemas.jobs import ImagesConfig
from pairmill.schemas.status import Status

_OVERSAMPLING = 3
"""A JPEG decoded at reduced scale keeps this many pixels per target pixel and side; area averaging does the rest.
Against full decoding, on 444 web photographs shrunk to 64 px: 2 gives a median PSNR of 38 dB (32 at the 5th
percentile), 3 gives 42 (34); Pillow's Lanczos instead of area averaging gives 36 (33)."""

_MAX_SCANS = 64
"""A progressive JPEG has about ten scans, and each costs a pass over all pixels: 160 of them in 600 kB took 33 s.
https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf , issue 1."""

_ONE_COLOR_TOLERANCE = 8
"""Levels of 255 by which the pixels of a picture of one color may differ: JPEG's ringing stays below."""

_PNG_LEVEL = 6  # zlib's own default

# libjpeg's JPEG_MAX_DIMENSION, libwebp's WEBP_MAX_DIMENSION, and libpng's default limit.
_MAX_SIDE = {"jpg": 65_500, "webp": 16_383, "png": 1_000_000}

_PILLOW_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}

_TURN = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True, slots=True)
class Picture:
    """What became of a body: OK with the stored picture, or an image_* status. Sizes in pixels, upright."""

    status: Status
    detail: str | None = None
    original_format: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    image: bytes | None = None  # encoded, without metadata
    width: int | None = None
    height: int | None = None
    phash: str | None = None
    one_color: bool | None = None


class ImageError(Exception):
    """A picture ends here, with this Status."""

    def __init__(self, status: Status, detail: str | None) -> None:
        super().__init__(status.value, detail)
        self.status = status
        self.detail = detail


@dataclass(slots=True)
class _Header:
    """What is known before any pixel is decoded. Size as stored, not yet turned."""

    format: str
    width: int
    height: int
    orientation: int = 1  # EXIF tag 0x0112
    sampling: str = "420"  # of color against brightness: halving it would smear edges of a picture that has it in full

    @property
    def upright_size(self) -> tuple[int, int]:
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


class ImageProcessor:
    """Decodes, resizes and encodes pictures as a job says. Safe to use from many threads.

    Sets limits that the libraries hold per process: Pillow's own guard against bombs, one thread per call in OpenCV
    (as many pictures as there are threads are decoded at once), and no warnings from Pillow about odd metadata.
    """

    def __init__(self, config: ImagesConfig) -> None:
        self._config = config
        Image.MAX_IMAGE_PIXELS = (config.max_pixels + 1) // 2  # Pillow raises above twice its limit
        warnings.filterwarnings("ignore", module=r"PIL\.")
        cv2.setNumThreads(1)

    def process(self, body: bytes) -> Picture:
        """Everything from the original bytes to the stored picture. Raises only what is no fault of the bytes."""
        header: _Header | None = None
        try:
            header, opened = self._open(body)
            with opened:
                target = self._plan(header)
                pixels = _decode(body, header, opened, target)
                is_plain = opened.mode in ("RGB", "L", "P") and "transparency" not in opened.info
                profile = opened.info.get("icc_profile") if opened.mode != "CMYK" else None  # applied while decoding
            # Pillow may have learned of a turn only from what follows the pixels (PNG's eXIf).
            target = self._plan(header)
            one_color = is_one_color(pixels)
            resized = resize(pixels, target, self._config)
            stored = pixels_to_srgb(resized, profile)  # fewer pixels to convert after resizing
            is_unchanged = is_plain and target is None and header.orientation == 1 and stored is resized
            kept = self._kept(body, header) if is_unchanged else None
            return self._picture(stored, kept or _encode(stored, self._config, header.sampling), header, one_color)
        except ImageError as error:
            return _refused(error, header)

    def header(self, body: bytes) -> tuple[str, tuple[int, int]]:
        """(format, (width, height) upright) as the header says; nothing is decoded. Raises ImageError."""
        header, opened = self._open(body)
        opened.close()
        return header.format, header.upright_size

    def pixels(self, body: bytes) -> Pixels:
        """The whole picture at its own size: RGB, 8 bits, upright, in sRGB. Raises ImageError."""
        header, opened = self._open(body)
        with opened:
            pixels = _decode(body, header, opened, None)
            profile = opened.info.get("icc_profile") if opened.mode != "CMYK" else None
        return pixels_to_srgb(pixels, profile)

    def _plan(self, header: _Header) -> Target | None:
        """How to resize. A long thin picture that is enlarged by its short side would be as large as any bomb."""
        target = plan(*header.upright_size, self._config)
        if target is not None and target.width * target.height > self._config.max_pixels:
            raise ImageError(Status.IMAGE_BOMB, f"would be {target.width} x {target.height} pixels once resized")
        return target

    def _open(self, body: bytes) -> tuple[_Header, Image.Image]:
        """Read the header and refuse bombs; no pixel is allocated."""
        found = sniff.image_format(body[: sniff.ENOUGH])
        if found not in sniff.DECODED or found is None:
            raise ImageError(Status.IMAGE_UNSUPPORTED, (found or sniff.text_kind(body) or "no known format").lower())
        try:
            opened = Image.open(BytesIO(body), formats=[found])
        except Image.DecompressionBombError as error:
            raise ImageError(Status.IMAGE_BOMB, clean_text(str(error))) from error
        except MemoryError:
            raise
        except Exception as error:  # parsers of hostile bytes raise anything: struct.error, IndexError, ...
            detail = f"unreadable {found} header" if isinstance(error, OSError) else describe(error)
            raise ImageError(Status.IMAGE_CORRUPT, detail) from error
        orientation = _orientation(opened) if found == "JPEG" else 1
        header = _Header(found, *opened.size, orientation, _color_sampling(found, opened))
        if header.width * header.height > self._config.max_pixels:
            opened.close()
            raise ImageError(Status.IMAGE_BOMB, f"{header.width} x {header.height} pixels")
        if found == "JPEG" and (scans := body.count(b"\xff\xda")) > _MAX_SCANS:  # only markers hold these bytes
            opened.close()
            raise ImageError(Status.IMAGE_BOMB, f"{scans} scans")
        return header, opened

    def _kept(self, body: bytes, header: _Header) -> bytes | None:
        """The original's own compressed pixels, where the job wants them; None where they have to be encoded anew."""
        is_wanted = self._config.skip_reencode and header.format == _PILLOW_NAMES[self._config.format]
        return strip(body, header.format) if is_wanted else None

    def _picture(self, pixels: Pixels, image: bytes, header: _Header, one_color: bool) -> Picture:
        width, height = header.upright_size
        return Picture(
            status=Status.OK,
            original_format=header.format,
            original_width=width,
            original_height=height,
            image=image,
            width=pixels.shape[1],
            height=pixels.shape[0],
            phash=phash(pixels),
            one_color=one_color,
        )


def _color_sampling(format: str, opened: Image.Image) -> str:
    """The resolution of color that is worth storing: the source's. What was halved (4:2:0) stays so."""
    if format == "WEBP":
        return "420"  # all that lossy WebP has
    if format != "JPEG" or opened.mode == "CMYK":
        return "444"
    return {0: "444", 1: "422"}.get(JpegImagePlugin.get_sampling(opened), "420")


def _refused(error: ImageError, header: _Header | None) -> Picture:
    if header is None:
        return Picture(error.status, error.detail)
    return Picture(error.status, error.detail, header.format, *header.upright_size)


def _decode(body: bytes, header: _Header, opened: Image.Image, target: Target | None) -> Pixels:
    """Pixels as RGB, upright; of a JPEG, maybe at reduced scale."""
    pixels = None
    if header.format == "JPEG" and opened.mode in ("RGB", "L"):
        pixels = _decode_jpeg(body, header, target)
    if pixels is None:
        pixels = _decode_with_pillow(header, opened)
    return _turn_upright(pixels, header.orientation)


def _decode_jpeg(body: bytes, header: _Header, target: Target | None) -> Pixels | None:
    """The fast path; None where Pillow has to look."""
    least_width = least_height = 0  # full size
    if target is not None:
        least_width, least_height = _OVERSAMPLING * target.width, _OVERSAMPLING * target.height
        if header.orientation >= 5:
            least_width, least_height = least_height, least_width
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            body,
            "RGB",
            min_width=least_width,
            min_height=least_height,
            min_factor=2.0,  # 7/8 and the like take longer than full size
        )
    except ValueError:  # truncated, corrupt, or rare
        return None
    return _halve(pixels, least_width, least_height)


def _halve(pixels: Pixels, least_width: int, least_height: int) -> Pixels:
    """Halve while more than enough pixels remain: by 2 exactly, averaging is ten times as fast as by other factors."""
    height, width = pixels.shape[:2]
    while least_width and width >= least_width * 4 / 3 and height >= least_height * 4 / 3:
        if width % 2 or height % 2:
            break
        width, height = width // 2, height // 2
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return pixels


def _decode_with_pillow(header: _Header, opened: Image.Image) -> Pixels:
    try:
        opened.load()
        header.orientation = _orientation(opened)
        header.width, header.height = opened.size  # TIFF turns itself upright while loading
        return to_rgb(opened)
    except UnsupportedMode as error:
        raise ImageError(Status.IMAGE_UNSUPPORTED, str(error)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(Status.IMAGE_BOMB, clean_text(str(error))) from error
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise ImageError(Status.IMAGE_CORRUPT, describe(error)) from error


def _orientation(opened: Image.Image) -> int:
    """EXIF or XMP orientation, 1 to 8; 1 where the metadata is broken: that must not lose the picture."""
    try:
        value = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the camera's orientation (EXIF 2.3, tag 0x0112)."""
    if orientation == 1:
        return pixels
    if orientation in _TURN:
        turned = cv2.rotate(pixels, _TURN[orientation])
    elif orientation in (2, 4):
        turned = cv2.flip(pixels, 1 if orientation == 2 else 0)
    else:
        turned = cv2.transpose(pixels)
        if orientation == 7:
            turned = cv2.rotate(turned, cv2.ROTATE_180)
    return np.asarray(turned, dtype=np.uint8)


def is_one_color(pixels: Pixels) -> bool:
    """True if no channel varies by more than the tolerance. A sparse look settles nearly every picture."""
    sparse = pixels[:: max(1, pixels.shape[0] // 16), :: max(1, pixels.shape[1] // 16)]
    if int(sparse[..., 1].max()) - int(sparse[..., 1].min()) > _ONE_COLOR_TOLERANCE:  # green
        return False
    channels = pixels.reshape(-1, 3)
    return not np.any(channels.max(axis=0) - channels.min(axis=0) > _ONE_COLOR_TOLERANCE)


def _encode(pixels: Pixels, config: ImagesConfig, sampling: str) -> bytes:
    """The stored picture. Only pixels are handed over, so no EXIF, XMP, GPS or ICC can come along."""
    height, width = pixels.shape[:2]
    if max(width, height) > _MAX_SIDE[config.format]:
        raise ImageError(Status.IMAGE_UNSUPPORTED, f"{width} x {height} cannot be stored as {config.format}")
    if config.format == "jpg":
        jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), config.quality, "RGB", sampling)
        return jpeg
    webp = config.format == "webp"
    options = [cv2.IMWRITE_WEBP_QUALITY, config.quality] if webp else [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL]
    _, encoded = cv2.imencode(f".{config.format}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return encoded.tobytes()
