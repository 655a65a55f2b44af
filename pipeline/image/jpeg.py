"""Reads the cost of decoding a JPEG from its markers. Source: ITU-T T.81, annex B."""

import re

_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # without DHT, JPG and DAC
_BASELINE = frozenset({0xC0, 0xC1})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
PLAIN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended and progressive with Huffman codes: what every reader supports. OpenCV reads no lossless gray, and
browsers no arithmetic codes."""
_ARITHMETIC = frozenset(range(0xC9, 0xD0))
_STANDALONE = frozenset({*range(0x01, 0xC0), *range(0xD0, 0xD9)})
"""TEM, RSTn, SOI, and the reserved markers. Where libjpeg expects a restart marker, it skips them as two bytes, so
reading a length after them could hide scans."""
_EOI, _SOS = 0xD9, 0xDA

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""Entropy-coded bytes escape 0xff with a zero, and contain no markers but RSTn. The pattern leaves out the fill bytes
(0xff) in front of a marker, because matching them would take quadratic time: 100 kB of them hung a worker."""

MAX_SCANS = 64
"""A progressive JPEG has about ten scans, and each costs a pass over all pixels: 160 of them in 600 kB took 33 s.
https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf , issue 1."""

_MAX_MARKERS = 10_000
"""Maximum number of markers after the first scan. Real pictures have a few hundred, each of which takes half a
microsecond."""

_NS_PER_SCAN = 1.5  # per scan and pixel; flat pictures, whose scans are nearly empty, take 0.7
_COEFFICIENT_BYTES = 2
_NS_ARITHMETIC = 60  # per pixel, on top of what Huffman codes take


def count_scans(body: bytes) -> tuple[int, int | None]:
    """(number of scans, number of the frame's SOF marker) for the first picture only: in a phone's motion photo, a
    video follows the picture, and a camera's thumbnail is inside a segment. Above `MAX_SCANS`, the exact number of
    scans does not matter.

    If the first scan of a baseline picture has all components, libjpeg reads no further scan, so the rest is not
    searched.
    """
    scans, frame, components, offset, since_scan = 0, None, b"", 2, 0
    while (found := _MARKER.search(body, offset)) is not None:
        marker, offset = found[1][0], found.end()
        since_scan += scans > 0
        if marker == _EOI:
            break
        if since_scan > _MAX_MARKERS:
            return MAX_SCANS + 1, frame
        if marker in _STANDALONE:
            continue
        if marker in _SOF and frame is None:
            frame, components = marker, body[offset + 7 : offset + 8]
        if marker == _SOS:
            scans += 1
            is_only_one = scans == 1 and frame in _BASELINE and body[offset + 2 : offset + 3] == components
            if is_only_one or scans > MAX_SCANS:
                break
        offset += int.from_bytes(body[offset : offset + 2], "big")
    return scans, frame


def extra_cost(
    size: tuple[int, int], layers: list[tuple[int, int, int, int]], scans: int, frame: int | None
) -> tuple[float, float]:
    """(bytes, nanoseconds) that a JPEG with several scans takes beyond one with a single scan. `layers` are Pillow's:
    name and sampling factors of each component."""
    pixels = size[0] * size[1]
    arithmetic_ns = pixels * _NS_ARITHMETIC if frame in _ARITHMETIC else 0.0
    if scans <= 1 and frame not in _PROGRESSIVE:
        return 0.0, arithmetic_ns
    samples = [horizontal * vertical for _, horizontal, vertical, _ in layers] or [1]
    coefficients = pixels * sum(samples) / max(max(samples), 1)
    return coefficients * _COEFFICIENT_BYTES, arithmetic_ns + pixels * scans * _NS_PER_SCAN
