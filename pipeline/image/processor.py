"""Turns the bytes of one picture into the bytes to store.

    bytes -> format by magic number -> size from the header, bombs refused      decode.py
          -> a JPEG that needs no change is checked and keeps its own pixels    passthrough.py
          -> RGB 8-bit, upright                                                 decode.py, rgb.py, orientation.py
          -> resized -> sRGB                                                    resize.py, color.py
          -> the stored picture and its perceptual hash                         compress.py, strip.py, phash.py
          -> its measures, if requested                                         measures.py

All heavy calls release the GIL, so threads scale.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
from PIL import Image

from pairmill.pipeline.image.color import changes_nothing, pixels_to_srgb
from pairmill.pipeline.image.compress import compress, original_without_metadata
from pairmill.pipeline.image.cost import budget, decoding_cost
from pairmill.pipeline.image.decode import ImageError, ImageHeader, color_profile, decode_pixels, open_image
from pairmill.pipeline.image.measures import Measured, measure
from pairmill.pipeline.image.memory_gate import MemoryGate
from pairmill.pipeline.image.one_color import is_one_color
from pairmill.pipeline.image.orientation import NORMAL_ORIENTATION
from pairmill.pipeline.image.passthrough import PassedPicture, pass_jpeg, plain_jpeg_size
from pairmill.pipeline.image.phash import phash
from pairmill.pipeline.image.resize import Pixels, Target, plan_resize, resize
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.pictures import Measure
from pairmill.schemas.status import Status


@dataclass(frozen=True, slots=True)
class ProcessedImage:
    """The result of processing one picture: OK with the stored picture, or an image_* status. Sizes are in pixels, with
    the EXIF orientation applied."""

    status: Status
    detail: str | None = None
    original_format: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    image: bytes | None = None
    """Encoded, without metadata."""
    width: int | None = None
    height: int | None = None
    phash: str | None = None
    one_color: bool | None = None
    measured: Measured | None = None
    """The requested measures of the stored picture, except that the JPEG quality is the original's."""


class ImageProcessor:
    """Decodes, resizes and encodes pictures as configured by a job. Thread-safe.

    Changes settings of the whole process: Pillow's guard against decompression bombs, one thread per call in OpenCV
    (pictures are decoded in parallel already), and no warnings from Pillow about odd metadata.
    """

    def __init__(self, config: ImagesConfig, measures: Sequence[Measure] = ()) -> None:
        """`measures`: what `process` measures in each picture."""
        self._config = config
        self._measures = measures
        self._gate = MemoryGate(budget(config.max_pixels).memory_bytes)
        Image.MAX_IMAGE_PIXELS = (config.max_pixels + 1) // 2  # Pillow raises above twice its limit
        warnings.filterwarnings("ignore", module=r"PIL\.")
        cv2.setNumThreads(1)

    @property
    def oldest_start(self) -> float | None:
        """When the work on the oldest picture in progress began (time.monotonic()); None if there is none."""
        return self._gate.oldest_start

    def process(self, body: bytes) -> ProcessedImage:
        """Original bytes -> the stored picture, or the Status that says why there is none. Bad bytes never raise."""
        header: ImageHeader | None = None
        try:
            with self._gate.entry() as reserve:
                if (plain := self._pass_plain(body)) is not None:
                    return plain
                header, opened = open_image(body, self._config.max_pixels, reserve)
                with opened:
                    target = self._plan(header)
                    profile = color_profile(header, opened)
                    is_unchanged = target is None and _is_plain(header, opened) and changes_nothing(profile)
                    if is_unchanged and (passed := self._pass(body, header)) is not None:
                        return self._passed_image(passed, header.displayed_size, body)
                    pixels = decode_pixels(body, header, opened, target)  # [height, width, 3]
                resized = resize(pixels, target, self._config)  # [target height, target width, 3]
                stored = pixels_to_srgb(resized, profile)  # after resizing there are fewer pixels to convert
                image = original_without_metadata(body, header, self._config) if is_unchanged else None
                chroma = header.chroma if self._config.chroma == "source" else self._config.chroma
                image = image or compress(stored, self._config, chroma)
                processed = _processed_image(stored, image, header, one_color=is_one_color(pixels))
                return replace(processed, measured=self._measure(stored, body))
        except ImageError as error:
            return _refused_image(error, header)

    def header(self, body: bytes) -> tuple[str, tuple[int, int]]:
        """(format, (width, height) with the EXIF orientation applied), from the header alone. Raises ImageError."""
        with self._gate.entry() as reserve:
            header, opened = open_image(body, self._config.max_pixels, reserve)
            opened.close()
        return header.format, header.displayed_size

    def pixels(self, body: bytes) -> Pixels:
        """The whole picture at its own size: uint8 [height, width, 3], with the EXIF orientation applied, in sRGB.
        Raises ImageError."""
        with self._gate.entry() as reserve:
            header, opened = open_image(body, self._config.max_pixels, reserve)
            with opened:
                profile = color_profile(header, opened)
                pixels = decode_pixels(body, header, opened, None)
            return pixels_to_srgb(pixels, profile)

    def _pass_plain(self, body: bytes) -> ProcessedImage | None:
        """Process a small, plain JPEG that keeps its own compressed pixels, without opening it with Pillow, which would
        take a quarter of the total time. None if the picture needs a closer look."""
        if not self._passes_jpegs or (size := plain_jpeg_size(body)) is None or 0 in size:
            return None
        is_small = decoding_cost("JPEG", "RGB", size).memory_bytes <= MemoryGate.FREE_BYTES
        if not is_small or size[0] * size[1] > self._config.max_pixels or plan_resize(*size, self._config) is not None:
            return None
        passed = pass_jpeg(body, *size, with_pixels=self._needs_pixels)
        return None if passed is None else self._passed_image(passed, size, body)

    @property
    def _passes_jpegs(self) -> bool:
        return self._config.reencode == "auto" and self._config.format == "jpg"

    def _pass(self, body: bytes, header: ImageHeader) -> PassedPicture | None:
        """An unchanged JPEG with its own compressed pixels; None if it has to be encoded again."""
        if header.format != "JPEG" or not self._passes_jpegs:
            return None
        return pass_jpeg(body, header.width, header.height, with_pixels=self._needs_pixels)

    @property
    def _needs_pixels(self) -> bool:
        return bool(set(self._measures) - {"jpeg_quality"})

    def _passed_image(self, picture: PassedPicture, size: tuple[int, int], body: bytes) -> ProcessedImage:
        found = ProcessedImage(Status.OK, None, "JPEG", *size, picture.image, *size, picture.phash, picture.one_color)
        return replace(found, measured=self._measure(picture.pixels, body)) if self._measures else found

    def _measure(self, pixels: Pixels | None, body: bytes) -> Measured | None:
        """The measures of a picture; `pixels` can be None if no measure needs them."""
        return measure(pixels, body, self._measures) if self._measures else None

    def _plan(self, header: ImageHeader) -> Target | None:
        """How to resize. Refuses a long, thin picture that would become a bomb when its short side is enlarged."""
        target = plan_resize(*header.displayed_size, self._config)
        if target is not None and target.width * target.height > self._config.max_pixels:
            raise ImageError(Status.IMAGE_BOMB, f"would be {target.width} x {target.height} pixels once resized")
        return target


def _is_plain(header: ImageHeader, opened: Image.Image) -> bool:
    """Whether the picture is gray or RGB, opaque, and stored in the orientation in which it is shown."""
    has_key = header.key is not None or header.samples.key is not None or "transparency" in opened.info
    return header.orientation == NORMAL_ORIENTATION and opened.mode in ("RGB", "L", "P") and not has_key


def _processed_image(pixels: Pixels, image: bytes, header: ImageHeader, one_color: bool) -> ProcessedImage:
    width, height = header.displayed_size
    return ProcessedImage(
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


def _refused_image(error: ImageError, header: ImageHeader | None) -> ProcessedImage:
    if header is None:
        return ProcessedImage(error.status, error.detail)
    return ProcessedImage(error.status, error.detail, header.format, *header.displayed_size)
