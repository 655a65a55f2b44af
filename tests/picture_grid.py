"""Generates small pictures of every kind that a header can announce, byte by byte if no library can write them.

Sources: PNG specification (third edition), TIFF 6.0, EXIF 2.3.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Values = npt.NDArray[Any]

WIDTH, HEIGHT = 24, 16


@dataclass(frozen=True)
class Case:
    """One picture, described by `name`. `tolerance`: maximum difference of any pixel, on a scale of 0 to 255."""

    name: str
    body: bytes
    tolerance: int = 2
    right: Values | None = None
    """The correct pixels where decoders disagree, by the specification or by what browsers show: uint8 [height, width]
    or [height, width, 3]."""


def values(bits: int, channels: int, seed: int = 5) -> Values:
    """Smooth values over the whole range of `bits` bits, with noise in the low bits: [height, width, channels]."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [(x * (3 + seed + channel) + y * (7 - channel) + 11 * channel) % 64 / 63 for channel in range(channels)]
    exact = np.rint(np.stack(planes, -1) * ((1 << bits) - 1)).astype(np.uint64)
    noise = np.random.default_rng(seed).integers(0, 1 << max(bits - 7, 0), exact.shape, dtype=np.uint64)
    return (exact ^ noise).astype(np.uint32)


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_GRID = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8)]
PNG_GRID += [(4, 16), (6, 8), (6, 16)]


def png(
    color_type: int,
    bits: int,
    before: bytes = b"",
    after: bytes = b"",
    *,
    first: bytes = b"",
    pixels: Values | None = None,
) -> bytes:
    """A PNG of `pixels` or `values`. `first` is whole chunks before the palette; `before` and `after` are whole chunks
    around the pixels."""
    data = values(bits, PNG_CHANNELS[color_type]) if pixels is None else pixels
    header = struct.pack(">IIBBBBB", data.shape[1], data.shape[0], bits, color_type, 0, 0, 0)
    palette = chunk(b"PLTE", palette_colors(1 << bits)) if color_type == 3 else b""
    rows = b"".join(b"\0" + packed(row, bits, ">") for row in data.reshape(len(data), -1))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + first + palette + before
        + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")
    )  # fmt: skip


def palette_colors(count: int) -> bytes:
    return b"".join(bytes((index * 37 % 256, 255 - index * 11 % 256, index * 83 % 256)) for index in range(count))


def packed(row: Values, bits: int, order: str) -> bytes:
    """One row of samples, most significant bits first, padded to whole bytes."""
    if bits >= 8 and bits != 12:
        return row.astype(f"{order}u{bits // 8}").tobytes()
    all_bits = (row[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(all_bits.reshape(-1).astype(np.uint8)).tobytes()


def transparency(color_type: int, bits: int, stray: int = 0) -> bytes:
    """The data of a tRNS chunk that makes one of the picture's colors transparent. `stray` goes into the bits above the
    picture's depth."""
    if color_type == 3:
        return bytes((0, 128, 255)[index % 3] for index in range(min(1 << bits, 7)))
    key = values(bits, PNG_CHANNELS[color_type])[HEIGHT // 2, WIDTH // 2]
    return b"".join(struct.pack(">H", int(value) | (stray << bits if bits < 16 else 0)) for value in key)


@cache
def profile(space: str) -> bytes:
    """An ICC profile for this color space (`RGB `, `GRAY`, `CMYK`) that visibly changes colors."""
    if space == "RGB ":
        return _wide_rgb()
    if space == "GRAY":
        return _gray_profile()
    return _wide_rgb()[:16] + space.encode() + _wide_rgb()[20:]


def _wide_rgb() -> bytes:
    """The sRGB profile with red and blue swapped, which makes it obvious whether the profile was applied."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * struct.unpack_from(">I", data, 128)[0], 12):
        name = bytes(data[at : at + 4])
        if name in (b"rXYZ", b"bXYZ"):
            data[at : at + 4] = b"bXYZ" if name == b"rXYZ" else b"rXYZ"
    data[44:48] = b"\0\0\0\0"
    return bytes(data)


def _gray_profile() -> bytes:
    """A gray profile with gamma 1.0 and white point D50: mid-grays become much brighter."""
    xyz = struct.pack(">4sIiii", b"XYZ ", 0, 0xF6D6, 0x10000, 0xD32D)
    curve = struct.pack(">4sII", b"curv", 0, 0) + b""
    desc = b"desc" + struct.pack(">II", 0, 2) + b"g\0" + bytes(4 + 4 + 2 + 1 + 67)
    desc += bytes(-len(desc) % 4)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    tags = ((b"wtpt", xyz), (b"kTRC", curve), (b"desc", desc), (b"cprt", text))
    offset, table, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags:
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value
    size = offset + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ") + bytes(12)
    header += b"acsp" + bytes(28) + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D) + bytes(128 - 24 - 12 - 4 - 28 - 12)
    return header + table + data


def exif(orientation: int) -> bytes:
    """A TIFF structure whose only tag is the orientation."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def tiff(
    pixels: Values,
    *,
    bits: int,
    photometric: int | None,
    order: str = "<",
    sample_format: int = 1,
    tags: dict[int, Any] | None = None,
    deflate: bool = False,
    rows_per_strip: int = HEIGHT,
    is_planar: bool = False,
    is_big: bool = False,
) -> bytes:
    """A TIFF, or a BigTIFF, of unsigned `pixels`, whose bits are written unchanged, with these values of tags 258, 262
    and 339."""
    per_pixel = pixels.shape[2]
    strips = []
    for plane in np.split(pixels, per_pixel, axis=2) if is_planar else [pixels]:
        for top in range(0, len(plane), rows_per_strip):
            rows = plane[top : top + rows_per_strip]
            data = b"".join(packed(row, bits, order) for row in rows.reshape(len(rows), -1))
            strips.append(zlib.compress(data) if deflate else data)
    offsets = [(16 if is_big else 8) + sum(map(len, strips[:index])) for index in range(len(strips))]
    entries: dict[int, Any] = {
        256: [pixels.shape[1]], 257: [len(pixels)], 258: [bits] * per_pixel, 259: [8 if deflate else 1],
        273: offsets, 277: [per_pixel], 278: [rows_per_strip], 279: list(map(len, strips)),
    }  # fmt: skip
    if is_planar:
        entries[284] = [2]
    if sample_format != 1:
        entries[339] = [sample_format] * per_pixel
    if photometric is not None:
        entries[262] = [photometric]
    entries |= tags or {}
    return _tiff_file(b"".join(strips), entries, order, is_big)


def _tiff_file(data: bytes, entries: dict[int, Any], order: str, is_big: bool = False) -> bytes:
    data += bytes(len(data) % 2)
    count_format, entry_format, word, header = ("Q", "HHQ", "Q", 16) if is_big else ("H", "HHI", "I", 8)
    inline = struct.calcsize(word)
    directory_at = header + len(data)
    entry_bytes = struct.calcsize(order + entry_format) + inline
    extra_at = directory_at + struct.calcsize(count_format) + entry_bytes * len(entries) + inline
    directory, extra = struct.pack(order + count_format, len(entries)), b""
    for tag, value in sorted(entries.items()):
        if isinstance(value, bytes):
            kind, count, raw = 7, len(value), value
        else:
            kind = 3 if max(value) < 65_536 and tag not in (273, 279) else 4
            count, raw = len(value), struct.pack(f"{order}{len(value)}{'H' if kind == 3 else 'I'}", *value)
        if len(raw) > inline:
            at, extra = extra_at + len(extra), extra + raw + bytes(len(raw) % 2)
            raw = struct.pack(order + word, at)
        directory += struct.pack(order + entry_format, tag, kind, count) + raw.ljust(inline, b"\0")
    start = b"II" if order == "<" else b"MM"
    start += (
        struct.pack(order + "HHHQ", 43, 8, 0, directory_at) if is_big else struct.pack(order + "HI", 42, directory_at)
    )
    return start + data + directory + bytes(inline) + extra


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(mode: str = "RGB") -> Image.Image:
    """A smooth color picture without symmetry."""
    y, x = np.mgrid[0 : HEIGHT * 4, 0 : WIDTH * 4] / 64
    planes = [128 + 100 * np.sin(2 * x + y), 128 + 100 * np.cos(3 * y - x), 255 * (x / 2 + y / 4).clip(0, 1)]
    image = Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray((255 * (x / x.max())).astype(np.uint8)))
        return image
    return image.convert(mode)


def png_cases() -> Iterator[Case]:
    for color_type, bits in PNG_GRID:
        name = f"png type {color_type} bits {bits}"
        yield Case(name, png(color_type, bits))
        if color_type in (0, 2, 3):
            yield Case(f"{name} tRNS", png(color_type, bits, chunk(b"tRNS", transparency(color_type, bits))))
        for orientation in (3, 6):
            yield Case(f"{name} eXIf {orientation}", png(color_type, bits, chunk(b"eXIf", exif(orientation))))
        for space in ("RGB ", "GRAY", "CMYK"):
            data = b"p\0\0" + zlib.compress(profile(space))
            yield Case(
                f"{name} profile {space.strip()}", png(color_type, bits, first=chunk(b"iCCP", data)), tolerance=4
            )
    dark = values(16, 1) // 328
    yield Case("png type 0 bits 16 dark", png(0, 16, pixels=dark))


def tiff_cases() -> Iterator[Case]:
    grid = itertools.product("<>", (1, 2, 4, 8, 12, 16, 32), (0, 1), (1, 2), (False, True))
    for order, bits, photometric, sample_format, deflate in grid:
        if sample_format == 2 and bits not in (8, 16, 32):
            continue
        name = f"tiff {'MM' if order == '>' else 'II'} {bits} bits photometric {photometric} format {sample_format}"
        body = tiff(
            values(bits, 1), bits=bits, photometric=photometric, order=order, sample_format=sample_format,
            deflate=deflate,
        )  # fmt: skip
        yield Case(name + (" deflate" if deflate else ""), body, right=shown(bits, photometric, sample_format))
    for order, bits, deflate in itertools.product("<>", (8, 16), (False, True)):
        rest = f"{'MM' if order == '>' else 'II'} {bits} bits{' deflate' if deflate else ''}"
        common: dict[str, object] = {"bits": bits, "order": order, "deflate": deflate}
        yield Case(f"tiff rgb {rest}", tiff(values(bits, 3), photometric=2, **common))
        yield Case(f"tiff rgba {rest}", tiff(values(bits, 4), photometric=2, tags={338: [2]}, **common))
        yield Case(f"tiff cmyk {rest}", tiff(values(bits, 4), photometric=5, **common))
    for orientation in range(1, 9):
        for channels in (1, 3):
            body = tiff(values(8, channels), bits=8, photometric=2 if channels == 3 else 1, tags={274: [orientation]})
            yield Case(f"tiff {channels} channels orientation {orientation}", body)
    for order, fill in (("<", 1), ("<", 2), (">", 1)):
        body = tiff(values(16, 1), bits=16, photometric=1, order=order, rows_per_strip=3, tags={266: [fill]})
        yield Case(f"tiff strips {order} fill order {fill}", body)
    for mode, compression in itertools.product(("RGB", "L", "1"), ("raw", "tiff_lzw", "packbits")):
        for turned in ({}, {"exif": b"Exif\0\0" + exif(6)}):
            body = saved(photo(mode), "TIFF", compression=compression, big_tiff=True, **turned)
            yield Case(f"bigtiff {mode} {compression} {'turned' if turned else ''}", body)
    for channels, space in itertools.product((1, 3), ("RGB ", "GRAY", "CMYK")):
        body = tiff(
            values(8, channels), bits=8, photometric=2 if channels == 3 else 1, tags={34675: profile(space)}
        )  # fmt: skip
        yield Case(f"tiff {channels} channels profile {space.strip()}", body, tolerance=4)
    colors = np.frombuffer(palette_colors(256), np.uint8).reshape(256, 3).T.reshape(-1).astype(int) * 257
    yield Case("tiff palette", tiff(values(8, 1), bits=8, photometric=3, tags={320: colors.tolist()}))
    ramp = np.linspace(0, 1, WIDTH, dtype="<f4").view("<u4")[None, :, None].repeat(HEIGHT, 0)
    for order, deflate, photometric in itertools.product("<>", (False, True), (0, 1)):
        name = f"tiff float {'MM' if order == '>' else 'II'}{' deflate' if deflate else ''} photometric {photometric}"
        body = tiff(ramp, bits=32, photometric=photometric, sample_format=3, order=order, deflate=deflate)
        gray = np.rint(ramp[..., 0].astype("<u4").view("<f4") * 255).astype(np.uint8)
        yield Case(name, body, right=gray if photometric else 255 - gray)
    yield from odd_tiff_cases()
    yield from rare_tiff_cases()
    yield Case("tiff 16 bits dark", tiff(values(16, 1) // 328, bits=16, photometric=1))
    yield Case("tiff without photometric", tiff(values(8, 1), bits=8, photometric=None), right=shown(8, 1, 1))


def odd_tiff_cases() -> Iterator[Case]:
    """Layouts for which Pillow's own reader, used for uncompressed files, differs from libtiff."""
    for deflate, extra in itertools.product((False, True), (0, 1, 2)):
        data = values(8, 2)
        gray, alpha = data[..., :1] / 255, data[..., 1:] / 255 if extra else np.ones((HEIGHT, WIDTH, 1))
        stored = np.concatenate([np.rint(gray * alpha * 255) if extra == 1 else data[..., :1], data[..., 1:]], axis=2)
        body = tiff(stored.astype(np.uint32), bits=8, photometric=1, deflate=deflate, tags={338: [extra]})
        right = over_white(np.concatenate([gray, gray, gray, alpha], axis=2))
        yield Case(f"tiff gray and channel of kind {extra}{' deflate' if deflate else ''}", body, right=right)
    colors = np.frombuffer(palette_colors(256), np.uint8).reshape(256, 3)
    body = tiff(values(8, 1), bits=8, photometric=3, tags={320: colors.T.reshape(-1).astype(int).tolist()})
    yield Case("tiff palette of 8 bits", body, right=colors[values(8, 1)[..., 0]])
    for across, down in itertools.product((1, 2, 4), (1, 2)):
        yield Case(f"tiff ycbcr {across} x {down}", ycbcr_tiff(across, down))


def rare_tiff_cases() -> Iterator[Case]:
    """Headers and tags that only rare files need."""
    for order, channels, bits, deflate in itertools.product("<>", (1, 3), (8, 16), (False, True)):
        body = tiff(
            values(bits, channels), bits=bits, photometric=2 if channels == 3 else 1, order=order, deflate=deflate,
            rows_per_strip=5, is_big=True,
        )  # fmt: skip
        yield Case(f"bigtiff {order} {channels} x {bits} bits{' deflate' if deflate else ''}", body)
    for compression, options in itertools.product(("group3", "group4"), (0, 1, 4, 5)):
        body = saved(photo("1"), "TIFF", compression=compression, tiffinfo={292: options})
        yield Case(f"tiff {compression} options {options}", body, right=np.asarray(photo("1").convert("L")))
    for subsampling, factors in enumerate(([1, 1], [2, 1], [2, 2])):
        body, right = old_jpeg_tiff("RGB", subsampling, factors)
        yield Case(f"tiff of an old-style jpeg {factors}", body, tolerance=6, right=right)


def old_jpeg_tiff(mode: str, subsampling: int, factors: list[int]) -> tuple[bytes, Values]:
    """A whole JPEG in a TIFF, as in TIFF 6.0, section 22 (compression 6, which 7 has replaced), and its pixels."""
    jpeg = saved(photo(mode), "JPEG", quality=95, subsampling=subsampling)
    right = np.asarray(Image.open(io.BytesIO(jpeg)))
    channels = len(mode)
    entries = {
        256: [right.shape[1]], 257: [right.shape[0]], 258: [8] * channels, 259: [6], 262: [6 if mode == "RGB" else 1],
        273: [8], 277: [channels], 278: [right.shape[0]], 279: [len(jpeg)], 512: [1], 513: [8], 514: [len(jpeg)],
        530: factors,
    }  # fmt: skip
    return _tiff_file(jpeg, entries, "<"), right


PLANES: list[tuple[int, tuple[int, ...], int, list[int], int, int]] = [
    # tag 262, bits, colors, tag 338 (zero: neither color nor alpha), tag 339, tag 266
    *((photometric, (1, 2, 4, 8, 12, 16, 32), 1, [], 1, 1) for photometric in (0, 1)),
    *((photometric, (8, 16), 1, [0], 1, 1) for photometric in (0, 1)),
    (1, (8, 16, 32), 1, [], 2, 1),
    (1, (16,), 1, [0], 2, 1),
    *((photometric, (32,), 1, [], 3, 1) for photometric in (0, 1)),
    *((2, (8, 16), 3, extra, 1, 1) for extra in ([], [0], [1], [2])),
    *((2, (8,), 3, extra, 1, 1) for extra in ([0, 0], [1, 0], [2, 0])),
    (2, (8,), 3, [], 1, 2),
    (3, (1, 2, 4, 8), 1, [], 1, 1),
    (3, (8,), 1, [0], 1, 1),
    (5, (8, 16), 4, [], 1, 1),
    (5, (8,), 4, [0], 1, 1),
]


def planar_tiffs() -> Iterator[tuple[str, bytes, bytes]]:
    """(description, a TIFF with each channel in strips of its own, the same picture with interleaved channels and
    without those that are neither color nor alpha)."""
    for order, deflate, (photometric, depths, colors, extra, sample_format, fill) in itertools.product(
        "<>", (False, True), PLANES
    ):
        alpha = [kind for kind in extra if kind]
        for bits in depths:
            tags: dict[int, Any] = {266: [1 if deflate else fill]}  # zlib's bits are not reversed
            if photometric == 3:
                tags[320] = [257 * color for channel in range(3) for color in palette_colors(1 << bits)[channel::3]]
            common: dict[str, Any] = {"bits": bits, "photometric": photometric, "sample_format": sample_format}
            common |= {"order": order, "deflate": deflate}
            data = values(bits, colors + len(extra))
            planar = tiff(data, tags=tags | extra_samples(extra), rows_per_strip=5, is_planar=True, **common)
            twin = tiff(data[..., : colors + len(alpha)], tags=tags | extra_samples(alpha), **common)
            yield f"{common} {colors=} {extra=} {fill=}", planar, twin


def extra_samples(kinds: list[int]) -> dict[int, Any]:
    return {338: kinds} if kinds else {}


def over_white(samples: Values) -> Values:
    """Colors from 0 to 1, with or without alpha, over white: uint8 [height, width, 3]."""
    alpha = samples[..., 3:] if samples.shape[2] == 4 else 1
    return np.rint(255 * (samples[..., :3] * alpha + 1 - alpha)).astype(np.uint8)


def ycbcr_tiff(across: int, down: int) -> bytes:
    """An uncompressed YCbCr TIFF with this subsampling (TIFF 6.0, section 21): for each block, its luma values, then
    its chroma values."""
    data = values(8, 3)
    blocks = [
        np.concatenate([data[y : y + down, x : x + across, 0].ravel(), data[y, x, 1:]])
        for y in range(0, HEIGHT, down)
        for x in range(0, WIDTH, across)
    ]
    raw = np.concatenate(blocks).astype(np.uint8).tobytes()
    tags = {258: [8, 8, 8], 262: [6], 277: [3], 530: [across, down]}
    size = {256: [WIDTH], 257: [HEIGHT], 259: [1], 273: [8], 278: [HEIGHT], 279: [len(raw)]}
    return _tiff_file(raw, size | tags, "<")


def shown(bits: int, photometric: int, sample_format: int) -> Values:
    """The brightness of `values` by TIFF 6.0. The smallest signed sample is black."""
    raw = values(bits, 1)[..., 0].astype(np.int64) ^ (1 << (bits - 1) if sample_format == 2 else 0)
    gray = np.rint(raw * (255 / ((1 << bits) - 1))).astype(np.uint8)
    return 255 - gray if photometric == 0 else gray


def other_cases() -> Iterator[Case]:
    for mode, progressive in itertools.product(("RGB", "L"), (False, True)):
        name = f"jpeg {mode}{' progressive' if progressive else ''}"
        for orientation in (1, 2, 5, 8):
            options = {"exif": b"Exif\0\0" + exif(orientation)} if orientation > 1 else {}
            body = saved(photo(mode), "JPEG", quality=95, progressive=progressive, **options)
            yield Case(f"{name} orientation {orientation}", body, tolerance=8)
        for space in ("RGB ", "GRAY", "CMYK"):
            body = saved(photo(mode), "JPEG", quality=95, progressive=progressive, icc_profile=profile(space))
            yield Case(f"{name} profile {space.strip()}", body, tolerance=8)
    yield Case("jpeg CMYK", saved(photo("CMYK"), "JPEG", quality=95))
    for kind, mode in itertools.product(("WEBP", "AVIF"), ("RGB", "RGBA", "L")):
        options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": "4:4:4"}
        if kind == "AVIF" and mode == "L":
            options = {"quality": 100}
        for extra in ({}, {"exif": b"Exif\0\0" + exif(6)}, *({"icc_profile": profile(s)} for s in ("RGB ", "GRAY"))):
            key = "".join(extra) + (profile_name(extra["icc_profile"]) if "icc_profile" in extra else "")
            yield Case(
                f"{kind.lower()} {mode} {key}".strip(), saved(photo(mode), kind, **options, **extra), tolerance=6
            )
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        body = saved(photo(mode), "BMP")
        yield Case(f"bmp {mode}", body)
        yield Case(f"bmp {mode} reserved fields", body[:6] + b"app\1" + body[10:])
    for mode in ("L", "P", "1"):
        yield Case(f"gif {mode}", saved(photo(mode), "GIF"))
    yield Case("gif transparent", saved(photo("P"), "GIF", transparency=3))
    for background, options in itertools.product((0, 7), ({}, {"transparency": 3})):
        yield offset_gif(background, options)
    yield from map(offset_webp, ("RGB", "RGBA"))


def offset_gif(background: int, options: dict[str, object]) -> Case:
    """A GIF whose frame covers only part of the screen. Browsers show the page around it, whatever the background
    color."""
    gray = photo("L").quantize(16)
    body = bytearray(saved(gray, "GIF", **options))
    frame = body.index(b"," + bytes(4) + struct.pack("<HH", *gray.size))
    struct.pack_into("<HH", body, 6, gray.width + 20, gray.height + 10)
    body[11] = background
    struct.pack_into("<HH", body, frame + 1, 15, 4)
    right = np.full((gray.height + 10, gray.width + 20), 255, np.uint8)
    inside = np.asarray(gray.convert("L"))
    key = options.get("transparency", -1)
    right[4:-6, 15:-5] = np.where(np.asarray(gray) == key, 255, inside)
    return Case(f"gif with a small frame on {background} {options or 'opaque'}", bytes(body), right=right)


def offset_webp(mode: str) -> Case:
    """An animated WebP whose first frame covers only part of the canvas, which is transparent around it in browsers."""
    image = photo("L").convert(mode)
    body = bytearray(saved(image, "WEBP", lossless=True, save_all=True, append_images=[image.rotate(180)]))
    body[20] = 0x12 if mode == "RGBA" else 0x02
    body[24:30] = (image.width + 19).to_bytes(3, "little") + (image.height + 9).to_bytes(3, "little")
    frame = body.index(b"ANMF") + 8
    body[frame : frame + 6] = (14 // 2).to_bytes(3, "little") + (4 // 2).to_bytes(3, "little")
    right = np.full((image.height + 10, image.width + 20), 255, np.uint8)
    right[4:-6, 14:-6] = np.asarray(image.convert("L"))
    return Case(f"webp with a small frame of {mode}", bytes(body), right=right)


def profile_name(data: bytes) -> str:
    return " " + data[16:20].decode().strip()


def cases() -> list[Case]:
    return [*png_cases(), *tiff_cases(), *other_cases()]
