"""Draws synthetic pictures, with the color profiles of real ones: sRGB, and the wider Adobe RGB, which most cameras
offer."""

import struct
from functools import cache

import cv2
import numpy as np
import simplejpeg
from PIL import ImageCms

SOURCE_QUALITY = 85

_ADOBE_RGB = {  # primaries adapted to D50: Adobe RGB (1998) Color Image Encoding, version 2005-05, annex B
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
}


def draw(width: int, height: int, seed: int, chroma: str = "420") -> bytes:
    """A JPEG with the spectrum of a photograph: noise at every scale, stronger at coarser scales, plus sensor noise."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.float32)
    for cell in (256, 64, 16, 4):
        coarse = rng.normal(0, 6 * cell**0.5, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    picture += rng.normal(0, 3, (height, width, 1))
    pixels = picture.clip(0, 255).astype(np.uint8)
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, SOURCE_QUALITY, "RGB", chroma)
    return jpeg


@cache
def srgb() -> bytes:
    """The sRGB profile of Little CMS."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@cache
def wide() -> bytes:
    """sRGB with the primaries of Adobe RGB."""
    profile = bytearray(srgb())
    for entry in range(int.from_bytes(profile[128:132], "big")):  # ICC.1:2022, 7.3: signature, offset, size
        signature, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * entry)
        if signature in _ADOBE_RGB:
            struct.pack_into(">3i", profile, offset + 8, *(round(value * 65_536) for value in _ADOBE_RGB[signature]))
    return bytes(profile)


def with_profile(jpeg: bytes, profile: bytes) -> bytes:
    """The JPEG with an APP2 segment for a profile of less than 64 kB (ICC.1:2022, B.4)."""
    payload = b"ICC_PROFILE\0\x01\x01" + profile
    return jpeg[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(payload)) + payload + jpeg[2:]
