"""Detects the format of a file from its first bytes alone, without a parser, file extension or Content-Type.

It is used twice: a download stops early if its bytes are not a picture, and the decoder passes a file only to the
parser that matches its magic number. Signatures: WHATWG MIME Sniffing (https://mimesniff.spec.whatwg.org), section 6.1,
and the formats' own specifications for those that browsers do not know.
"""

FORMAT_HEAD_BYTES = 32
"""`image_format` needs no more bytes than this (`ftyp` at offset 4, and a few compatible brands)."""

TEXT_HEAD_BYTES = 1024
"""`text_kind` searches this many bytes for `<svg` after an XML prolog, comments and a doctype."""

DECODED = frozenset({"JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"})
"""Formats that `decode.py` decodes, by Pillow's names. The other recognized formats are unsupported: rare ones need
parsers that are seldom hardened (JPEG 2000, ICO), and HEIC needs a patent-encumbered library."""

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),  # BigTIFF
    (b"MM\x00+", "TIFF"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JXL"),
    (b"\xff\x0a", "JXL"),
    (b"8BPS", "PSD"),
    (b"qoif", "QOI"),
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))
"""Valid sizes of the second header, from OS/2 1 to Windows 5. The reserved fields before it can have any value."""

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"})
_HEIF_CONTAINERS = frozenset({b"mif1", b"msf1"})


def image_format(head: bytes) -> str | None:
    """Pillow's name (JPEG, PNG, ...) of the format whose files begin like this, or None. SVG: see `text_kind`."""
    for prefix, name in _PREFIXES:
        if head.startswith(prefix):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _heif_format(head)
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADERS:  # many text files begin with "BM"
        return "BMP"
    return None


def _heif_format(head: bytes) -> str | None:
    """AVIF or HEIC, by the major brand and the compatible brands in `head` (ISO/IEC 23008-12, annex B)."""
    end = min(int.from_bytes(head[:4], "big"), FORMAT_HEAD_BYTES)
    brands = [head[8:12], *(head[offset : offset + 4] for offset in range(16, end, 4))]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    if any(brand in _HEIC_BRANDS for brand in brands):
        return "HEIC"
    return "AVIF" if brands[0] in _HEIF_CONTAINERS else None


def looks_like_text(head: bytes) -> bool:
    """Whether the text can be markup: `<` after an optional byte order mark and white space."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\x0c").startswith(b"<")


def text_kind(head: bytes) -> str | None:
    """`svg`, `html` or `xml` for markup; also `Git LFS pointer`, the text that a clone without Git LFS has instead of a
    file; None for anything else."""
    if head.startswith(_LFS_POINTER):
        return "Git LFS pointer"
    if not looks_like_text(head):
        return None
    text = head[:TEXT_HEAD_BYTES].lower()
    if b"<html" in text or b"<!doctype html" in text:
        return "html"  # pages contain inline <svg> too
    if b"<svg" in text:
        return "svg"
    return "xml" if b"<?xml" in text else "html"
