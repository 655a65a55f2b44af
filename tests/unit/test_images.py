"""Tests the path from bytes to the stored picture with synthetic pictures."""

import io
import os
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image, ImageOps, PngImagePlugin

from pairmill.pipeline.image.jpeg import MAX_SCANS, count_scans
from pairmill.pipeline.image.processor import ImageProcessor, ProcessedImage
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status

Pixels = npt.NDArray[np.uint8]


def draw(width: int, height: int, seed: int = 0) -> Pixels:
    """Asymmetric noise at every scale, stronger at coarser scales, so that its spectrum resembles a photograph's."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.float32)
    for cell in (256, 64, 16, 4):
        coarse = rng.normal(0, 6 * cell**0.5, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (picture + rng.normal(0, 3, (height, width, 1))).clip(0, 255).astype(np.uint8)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def process(body: bytes, **settings: Any) -> ProcessedImage:
    return ImageProcessor(ImagesConfig(**settings)).process(body)


def pixels_of(picture: ProcessedImage) -> Pixels:
    assert picture.status is Status.OK, picture
    assert picture.image is not None
    return np.asarray(Image.open(io.BytesIO(picture.image)).convert("RGB"))


def stored(body: bytes, **settings: Any) -> Pixels:
    """Pixels of the stored picture, encoded losslessly at the original size."""
    return pixels_of(process(body, resize_mode="no", format="png", **settings))


def psnr(one: Pixels, other: Pixels) -> float:
    return float(cv2.PSNR(one, other))


PHOTO = draw(320, 200)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_every_format_is_decoded(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    picture = process(save(Image.fromarray(PHOTO), kind, **options), resize_mode="no", format="png")
    assert (picture.original_format, picture.original_width, picture.original_height) == (kind, 320, 200)
    assert (picture.width, picture.height, picture.one_color) == (320, 200, False)
    assert psnr(pixels_of(picture), PHOTO) > (25 if kind == "GIF" else 35)


@pytest.mark.parametrize(
    ("kind", "orientation"), [*product(["JPEG"], range(1, 9)), *product(["PNG", "WEBP", "TIFF"], [2, 6, 8])]
)
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = save(Image.fromarray(PHOTO), kind, exif=exif, **({"quality": 95} if kind != "PNG" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB")
    picture = process(body, resize_mode="no", format="png")
    assert (picture.original_width, picture.original_height) == upright.size
    assert psnr(pixels_of(picture), np.asarray(upright)) > 40
    small = process(body, size=64, format="png")
    assert (small.width, small.height) == ((40, 64) if orientation >= 5 else (64, 40))
    assert small.width == pixels_of(small).shape[1]


def test_an_orientation_given_only_in_xmp_is_applied() -> None:
    info = PngImagePlugin.PngInfo()
    xmp = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", xmp)
    body = save(Image.fromarray(PHOTO), "PNG", pnginfo=info)
    assert np.array_equal(stored(body), np.rot90(PHOTO, -1))


GIF_EXTENSIONS = {
    "empty": b"\x21\x01\0",
    "empty application extension": b"\x21\xff\0",
    "empty comment": b"\x21\xfe\0",
    "empty, then a comment that looks like a large picture": b"\x21\x07\0\x21\xfe\x40"
    + (b"a" * 31 + b"\0," + b"\xff" * 9).ljust(64, b"a")
    + b"\0",
    "unknown": b"\x21\x07\x03abc\x02\x2c\0\0",
    "comments": b"\x21\xfe\x02hi\0" * 3,
    "an earlier graphic control": b"\x21\xf9\x04\x01\0\0\x05\0",
}


@pytest.mark.parametrize("extensions", GIF_EXTENSIONS.values(), ids=GIF_EXTENSIONS.keys())
def test_extensions_of_a_gif_do_not_change_it(extensions: bytes) -> None:
    picture = Image.frombytes("P", (20, 10), bytes(range(200)))
    picture.putpalette([level for level in range(256) for _ in range(3)])
    body = save(picture, "GIF", transparency=3)
    at = 13 + (3 * (2 << (body[10] & 7)) if body[10] & 0x80 else 0)
    assert body[at : at + 2] == b"\x21\xf9"  # the extension with the transparent color
    processor = ImageProcessor(ImagesConfig())
    expected = processor.pixels(body)
    assert np.array_equal(processor.pixels(body[:at] + extensions + body[at:]), expected)


@cache
def jpeg_and_bmp(width: int, height: int) -> tuple[bytes, bytes]:
    """A JPEG, and a BMP of the same pixels, which is never decoded at reduced scale. Cached because drawing is slow."""
    body = simplejpeg.encode_jpeg(draw(width, height), 90, "RGB", "420")
    return body, save(Image.open(io.BytesIO(body)).convert("RGB"), "BMP")


@pytest.mark.parametrize("size", [(2600, 1800), (2500, 700), (1100, 1400), (1024, 768)])
@pytest.mark.parametrize("mode", ["keep_ratio_largest", "keep_ratio", "center_crop", "border"])
def test_scaled_decoding_looks_like_full_decoding(size: tuple[int, int], mode: str) -> None:
    body, exact = jpeg_and_bmp(*size)
    fast, reference = (process(data, size=256, resize_mode=mode, format="png") for data in (body, exact))
    assert (fast.width, fast.height) == (reference.width, reference.height)
    assert (fast.original_width, fast.original_height) == size
    assert psnr(pixels_of(fast), pixels_of(reference)) >= 35


def test_a_grayscale_jpeg_is_decoded() -> None:
    grey = Image.fromarray(PHOTO).convert("L")
    assert psnr(stored(save(grey, "JPEG", quality=95)), np.asarray(grey.convert("RGB"))) > 40


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
def test_all_variants_of_jpeg_match_pillow(options: dict[str, object]) -> None:
    body = save(Image.fromarray(PHOTO), "JPEG", **options)
    assert psnr(stored(body), np.asarray(Image.open(io.BytesIO(body)))) > 45


def test_a_cmyk_jpeg_is_decoded_as_by_pillow() -> None:
    cmyk = Image.fromarray(PHOTO).convert("CMYK")
    body = save(cmyk, "JPEG", quality=95)
    assert psnr(stored(body), np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))) > 60


def test_16_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(1, 256).repeat(8, 0)
    for kind in ("PNG", "TIFF"):
        out = stored(save(Image.fromarray(ramp), kind))
        assert out[0, :, 0].tolist() == list(range(256)), kind
    encoded = cv2.imencode(".png", np.dstack([ramp] * 3))[1].tobytes()
    assert np.abs(stored(encoded)[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_grayscale_of_other_bit_depths_is_scaled_to_8_bits() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(1, 256).repeat(8, 0)
    assert stored(save(Image.fromarray(ramp), "TIFF"))[0, :, 0].tolist() == list(range(256))
    wide = np.rint(ramp.astype(np.float64) * (2**32 - 1) - 2**31).astype(np.int32)
    assert stored(save(Image.fromarray(wide), "TIFF"))[0, :, 0].tolist() == list(range(256))
    assert np.ptp(stored(save(Image.fromarray(wide // 1_000_000), "TIFF"))) <= 1  # scaled by depth, not by value
    bits = Image.fromarray(PHOTO).convert("1")
    assert np.array_equal(stored(save(bits, "PNG")), np.asarray(bits.convert("RGB")))


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")])
def test_alpha_is_composited_over_white(kind: str, mode: str) -> None:
    image = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    image.paste((0, 0, 0, 128), (16, 0, 32, 32))
    out = stored(save(image.convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert out[5, [5, 40]].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert abs(int(out[5, 20, 0]) - 127) <= 1


def test_palettes_are_decoded_and_a_transparent_color_becomes_white() -> None:
    image = Image.new("P", (32, 16), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 16, 16))
    assert stored(save(image, "PNG"))[8, [4, 20]].tolist() == [[0, 0, 255], [255, 0, 0]]
    for kind in ("PNG", "GIF"):
        out = stored(save(image, kind, transparency=0))
        assert out[8, [4, 20]].tolist() == [[0, 0, 255], [255, 255, 255]], kind
    key = save(Image.fromarray(np.full((8, 8, 3), 9, np.uint8)), "PNG", transparency=(9, 9, 9))
    assert stored(key).min() == 255


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_decoded(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    body = save(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(stored(body)[16, 16].astype(int) - (255, 0, 0)).max() <= 3


def png_header(width: int, height: int) -> bytes:
    body = bytearray(save(Image.new("L", (1, 1)), "PNG"))
    body[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    body[29:33] = zlib.crc32(bytes(body[12:29])).to_bytes(4, "big")
    return bytes(body)


def jpeg_header(width: int, height: int) -> bytes:
    body = bytearray(save(Image.new("RGB", (8, 8)), "JPEG"))
    at = body.index(b"\xff\xc0") + 5
    body[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(body)


def gif_header(width: int, height: int) -> bytes:
    body = bytearray(save(Image.new("P", (1, 1)), "GIF"))
    body[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return bytes(body)


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + (10).to_bytes(4, "little") + b"\x02\x00\x00\x00" + canvas
    return b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk


@pytest.mark.parametrize("header", [png_header, jpeg_header, gif_header, webp_header])
def test_bombs_are_refused_after_reading_only_their_header(header: Any) -> None:
    picture = process(header(16_000, 16_000))
    assert picture.status is Status.IMAGE_BOMB
    assert picture.detail is not None
    assert "256" in picture.detail.replace("16000 x 16000", "256")
    assert picture.image is None


def test_a_progressive_jpeg_with_too_many_scans_is_a_bomb() -> None:
    body = save(Image.fromarray(PHOTO), "JPEG", progressive=True)
    last_scan = body[body.rindex(b"\xff\xda") : -2]
    assert process(body[:-2] + 30 * last_scan + body[-2:]).status is Status.OK
    picture = process(body[:-2] + 100 * last_scan + body[-2:])
    assert (picture.status, picture.detail) == (Status.IMAGE_BOMB, "more than 64 scans")


_ONE_THREAD = """
import io, time
from PIL import Image
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig
noise = io.BytesIO()
Image.effect_noise((500, 245), 5).convert("RGB").save(noise, "JPEG")
process = ImageProcessor(ImagesConfig()).process
process(noise.getvalue())
time.sleep(0.3)
whole, own = time.process_time(), time.thread_time()
[process(noise.getvalue()) for _ in range(500)]
print((time.process_time() - whole) / (time.thread_time() - own))
"""


def test_processing_a_picture_uses_the_cpu_time_of_only_one_thread() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", _ONE_THREAD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.1


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + (2 + len(payload)).to_bytes(2, "big") + payload


FRAME_OF_THREE = bytes((8, 12, 0, 12, 0, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0))
SCAN_OF_ONE = segment(0xDA, bytes((1, 1, 0, 0, 63, 0)))
SCAN_OF_THREE = segment(0xDA, bytes((3, 1, 0, 2, 0, 3, 0, 0, 63, 0)))


@pytest.mark.parametrize(
    ("frame", "scans"),
    [
        (0xC0, SCAN_OF_ONE + SCAN_OF_THREE + 100 * SCAN_OF_ONE),  # the first scan lacks components, so more follow
        (0xC0, SCAN_OF_THREE),
        (0xC2, SCAN_OF_ONE + b"\0\xff\x02\xff\xff" + 100 * SCAN_OF_ONE),  # libjpeg skips only the two bytes ff 02
        (0xC2, SCAN_OF_ONE + 20_000 * b"\xff\x01"),
    ],
)
def test_no_scan_is_hidden_from_the_count(frame: int, scans: bytes) -> None:
    body = b"\xff\xd8" + segment(frame, FRAME_OF_THREE) + scans + b"\xff\xd9"
    found, kind = count_scans(body)
    assert kind == frame
    assert (found > MAX_SCANS) == (scans != SCAN_OF_THREE)


def test_the_job_sets_the_limit_on_pixels() -> None:
    body = save(Image.fromarray(PHOTO), "PNG")
    assert process(body, max_pixels=320 * 200).status is Status.OK
    assert process(body, max_pixels=320 * 200 - 1).status is Status.IMAGE_BOMB


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
def test_truncated_pictures_are_corrupt(kind: str, kept: float) -> None:
    body = save(Image.fromarray(PHOTO), kind)
    picture = process(body[: int(len(body) * kept)], size=64)
    assert picture.status is Status.IMAGE_CORRUPT
    assert picture.image is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_picture_without_its_last_bytes_is_corrupt_or_unchanged(kind: str) -> None:
    """Some decoders take missing bytes for zeros. The last bytes can also be metadata, padding or an end marker."""
    for options in [{"lossless": True}, {"lossless": False}] if kind == "WEBP" else [{}]:
        body = save(Image.fromarray(PHOTO[:48, :64]), kind, **options)
        whole = stored(body)
        for missing in (1, 2, 3, 4, 8, 16, 64):
            if process(cut := body[:-missing]).status is not Status.IMAGE_CORRUPT:
                assert np.array_equal(stored(cut), whole), missing


def test_a_truncated_progressive_jpeg_is_corrupt() -> None:
    body = save(Image.fromarray(PHOTO), "JPEG", progressive=True)
    assert process(body[: len(body) // 2]).status is Status.IMAGE_CORRUPT


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "no known format"),
        (b"hello", "no known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg"),
        (save(Image.new("RGB", (16, 16)), "ICO"), "ico"),
        (save(Image.new("RGB", (16, 16)), "JPEG2000"), "jpeg2000"),
        (save(Image.new("RGB", (16, 16)), "PPM"), "no known format"),
    ],
)
def test_other_formats_are_unsupported(body: bytes, detail: str) -> None:
    picture = process(body)
    assert (picture.status, picture.detail) == (Status.IMAGE_UNSUPPORTED, detail)


def test_randomly_damaged_pictures_get_a_status_and_never_raise() -> None:
    rng = np.random.default_rng(7)
    processor = ImageProcessor(ImagesConfig(size=64))
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"):
        body = np.frombuffer(save(Image.fromarray(PHOTO[:60, :80]), kind), np.uint8)
        for _ in range(60):
            damaged = body.copy()
            places = rng.integers(0, min(len(body), 4000), 5)
            damaged[places] = rng.integers(0, 256, 5)
            assert processor.process(damaged.tobytes()).status in (
                Status.OK,
                Status.IMAGE_CORRUPT,
                Status.IMAGE_UNSUPPORTED,
                Status.IMAGE_BOMB,
            )


@pytest.mark.parametrize("format_", ["jpg", "png", "webp"])
def test_stored_pictures_contain_nothing_but_pixels(format_: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif.get_ifd(0x8825)[1] = "N"
    profile = b"p" * 500
    body = save(Image.fromarray(PHOTO), "JPEG", exif=exif, icc_profile=profile, comment=b"hello", xmp=b"<xmp>")
    picture = process(body, format=format_, resize_mode="no")
    assert picture.image is not None
    image = Image.open(io.BytesIO(picture.image))
    assert image.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[format_]
    assert not image.getexif()
    assert not set(image.info) & {"exif", "icc_profile", "xmp", "comment", "XML:com.adobe.xmp"}
    for secret in (b"Camera", b"<xmp>", b"hello", profile):
        assert secret not in picture.image


def test_quality_affects_jpeg_and_webp() -> None:
    body = save(Image.fromarray(PHOTO), "PNG")
    for format_ in ("jpg", "webp"):
        small, large = (process(body, format=format_, quality=quality).image or b"" for quality in (20, 95))
        assert len(small) < len(large) / 2


def test_a_picture_too_large_for_the_stored_format_is_unsupported() -> None:
    body = save(Image.new("L", (70_000, 2)), "PNG")
    for format_ in ("jpg", "webp"):
        picture = process(body, resize_mode="no", format=format_)
        assert picture.status is Status.IMAGE_UNSUPPORTED, format_
        assert picture.detail == f"70000 x 2 cannot be stored as {format_}"


def test_a_picture_of_one_color_is_detected() -> None:
    flat = np.full((90, 120, 3), (10, 200, 90), np.uint8)
    dotted = flat.copy()
    dotted[41, 57] = 255
    for kind in ("JPEG", "PNG", "GIF"):
        assert process(save(Image.fromarray(flat), kind)).one_color is True
    assert process(save(Image.fromarray(dotted), "PNG")).one_color is False
    assert process(save(Image.fromarray(flat), "PNG"), size=200, resize_mode="border").one_color is True


def test_many_threads_give_the_same_results_as_one() -> None:
    bodies = [
        save(Image.fromarray(draw(200, 150, seed)), kind) for seed in range(4) for kind in ("JPEG", "PNG", "WEBP")
    ]
    processor = ImageProcessor(ImagesConfig(size=100))
    alone = [processor.process(body) for body in bodies]
    barrier = threading.Barrier(4)

    def work(_: int) -> list[ProcessedImage]:
        barrier.wait()
        return [processor.process(body) for body in bodies]

    with ThreadPoolExecutor(4) as pool:
        assert all(result == alone for result in pool.map(work, range(4)))


def test_a_picture_with_broken_exif_is_kept() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\n\n\nno hex digits")  # Pillow raises an exception for it
    body = save(Image.new("RGB", (64, 40), "red"), "PNG", pnginfo=info)
    with pytest.raises(ValueError, match="hex"):
        Image.open(io.BytesIO(body)).getexif()
    picture = process(body)
    assert (picture.status, picture.width, picture.height) == (Status.OK, 64, 40)


def test_a_jpeg_with_contradictory_frame_headers_gets_a_status() -> None:
    body = save(Image.fromarray(PHOTO), "JPEG")
    at = body.index(b"\xff\xc0")
    gray_frame = b"\xff\xc0\x00\x0b\x08" + body[at + 5 : at + 9] + b"\x01\x01\x11\x00"
    of_three = b"\xff\xc0\x00\x0b\x08" + body[at + 5 : at + 9] + b"\x03\x01\x11\x00"
    for odd in (
        body[:at] + gray_frame + body[at:],
        body[:at] + of_three + body[at + 19 :],
        body[:at] + of_three + body[at:],
    ):
        assert process(odd).status in (Status.OK, Status.IMAGE_CORRUPT)
