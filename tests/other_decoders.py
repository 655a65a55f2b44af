"""Decodes a file with three independent decoders: to 8-bit sRGB, over white, with the orientation applied. The result
of a decoder that refuses the file is None.

Each decoder does as much as it can by itself. OpenCV does not support profiles, so only the other two decode pictures
that have one.
"""

import contextlib
import io
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyvips
from PIL import Image, ImageCms, ImageOps

Pixels = npt.NDArray[np.uint8]


def pillow(body: bytes) -> Pixels | None:
    """Decode with Pillow and do the conversions that it leaves to its caller: TIFF's tags 258, 262 and 339, tRNS, alpha
    and profiles."""
    try:
        image = Image.open(io.BytesIO(body))
        tags, profile = dict(getattr(image, "tag_v2", {})), image.info.get("icc_profile")
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            image = Image.fromarray(_pillow_gray(image, tags))
        gray = image.mode in ("LA", "L", "1") or (body[1:4] == b"PNG" and body[25] in (0, 4))
        alpha = None
        if "A" in image.mode or "transparency" in image.info:
            if body[1:4] == b"PNG" and body[24] in (2, 4) and body[25] == 0:
                image.info["transparency"] *= 255 // ((1 << body[24]) - 1)  # Pillow#9281
            alpha = image.convert("RGBA").getchannel("A")
        if image.mode != "CMYK":
            image = image.convert("L" if gray else "RGB")
        if profile:
            with contextlib.suppress(ImageCms.PyCMSError, OSError):  # the profile does not fit the pixels
                source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        image = image.convert("RGB")
        if alpha:
            image.putalpha(alpha)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return np.asarray(image)
    except Exception:
        return None


def _pillow_gray(image: Image.Image, tags: dict[int, Any]) -> Pixels:
    values = np.asarray(image)
    bits = tags.get(258, (16,))[0]
    if image.mode == "F":
        gray = np.rint(values * 255).astype(np.uint8)
    else:
        if tags.get(339) == (2,):
            values = values.astype(np.int64) + (1 << (bits - 1))
        gray = np.rint((values.astype(np.int64) % (1 << bits)) * (255 / ((1 << bits) - 1))).astype(np.uint8)
    if tags.get(262) == 0:
        gray = 255 - gray
    if "transparency" in image.info:
        gray = np.where(values == image.info["transparency"], np.uint8(255), gray)
    return gray


def opencv(body: bytes) -> Pixels | None:
    data = np.frombuffer(body, np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if image is not None and image.dtype in (np.uint8, np.uint16) and (image.ndim == 2 or image.shape[2] != 4):
            image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)  # also applies the orientation
    except cv2.error:
        return None
    if image is None:
        return None
    if image.dtype != np.uint8:  # OpenCV does not say which value is white
        limits = (0, 1) if image.dtype.kind == "f" else (np.iinfo(image.dtype).min, np.iinfo(image.dtype).max)
        image = np.rint((image.astype(float) - limits[0]) * (255 / (limits[1] - limits[0])))
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(float) / 255
        image = np.rint(image[..., :3] * alpha + 255 * (1 - alpha))
    return np.ascontiguousarray(image[..., ::-1].astype(np.uint8))


_RANGES = {"char": (-128, 127), "short": (-32_768, 32_767), "int": (-(2**31), 2**31 - 1), "uint": (0, 2**32 - 1)}
_RANGES["float"] = (0, 1)


def libvips(body: bytes) -> Pixels | None:
    try:
        image = pyvips.Image.new_from_buffer(body, "").autorot()
        if image.format in _RANGES:  # for these, libvips does not say which value is white
            low, high = _RANGES[image.format]
            image = ((image - low) * (255 / (high - low))).rint().cast("uchar").copy(interpretation="b-w")
        if image.get_typeof("icc-profile-data"):
            with contextlib.suppress(pyvips.Error):
                image = image.icc_transform("srgb", embedded=True)
        image = image.colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=[255, 255, 255])
        image = image.cast("uchar")
        if image.bands == 1:
            image = image.bandjoin([image, image])
        return np.asarray(image.numpy()[..., :3])
    except pyvips.Error:
        return None
