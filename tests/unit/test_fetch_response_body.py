"""Tests bodies as they arrive: limits, first bytes, content codings."""

import gzip
import zlib

import pytest

from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.fetch.response_body import ResponseBody
from pairmill.pipeline.image import sniff
from pairmill.schemas.status import Status

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(200))


def collect(
    *chunks: bytes, max_bytes: int = 10_000, coding: str = "", content_type: str | None = "image/jpeg"
) -> bytes:
    body = ResponseBody(max_bytes, content_type, [coding])
    for chunk in chunks:
        body.add(chunk)
    return body.finish()


def failure(*chunks: bytes, **options: object) -> tuple[Status, str | None]:
    with pytest.raises(FetchError) as caught:
        collect(*chunks, **options)  # type: ignore[arg-type]
    return caught.value.status, caught.value.detail


def test_the_number_of_content_codings_is_limited() -> None:
    """Each coding takes a decompressor and at least one stack frame."""
    packed = JPEG
    for _ in range(5):
        packed = gzip.compress(packed)
    body = ResponseBody(10_000, None, ["gzip", "identity"] * 5)
    body.add(packed)
    assert body.finish() == JPEG
    for number in (6, 1_500):
        with pytest.raises(FetchError, match=r"protocol_error.*more than 5 content codings"):
            ResponseBody(10_000, None, ["gzip"] * number)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunks_are_joined(size: int) -> None:
    assert collect(*(JPEG[start : start + size] for start in range(0, len(JPEG), size))) == JPEG


def test_a_tiny_picture_is_checked_when_it_ends() -> None:
    assert collect(b"GIF89a1") == b"GIF89a1"
    assert failure(b"hello")[0] is Status.NOT_AN_IMAGE


def test_a_body_without_bytes_is_empty() -> None:
    assert failure() == (Status.EMPTY_BODY, None)
    assert failure(b"", b"") == (Status.EMPTY_BODY, None)


def test_the_limit_is_enforced_while_reading() -> None:
    body = ResponseBody(1000, None)
    body.add(JPEG)
    with pytest.raises(FetchError) as caught:
        body.add(bytes(1000))
    assert caught.value.status is Status.BODY_TOO_LARGE
    assert len(collect(JPEG + bytes(1000 - len(JPEG)), max_bytes=1000)) == 1000


HTML = b"<!DOCTYPE html><html><body>" + b"x" * 2000


@pytest.mark.parametrize(
    ("chunk", "status", "detail"),
    [
        (HTML, Status.NOT_AN_IMAGE, "text/html, looks like html"),
        (b"  \n<html>" + b" " * 2000, Status.NOT_AN_IMAGE, "text/html, looks like html"),
        (b'{"error": "no such picture", "code": 404}', Status.NOT_AN_IMAGE, "text/html, begins with 7b 22"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Status.IMAGE_UNSUPPORTED, "svg"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><!-- hi --><svg>", Status.IMAGE_UNSUPPORTED, "svg"),
        (b"<?xml version='1.0'?><rss>", Status.NOT_AN_IMAGE, "text/html, looks like xml"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(40), Status.IMAGE_UNSUPPORTED, "heic"),
        (b"\x00\x00\x01\x00" + bytes(40), Status.IMAGE_UNSUPPORTED, "ico"),
        (
            b"BM, detail_found the bishop, and went on to say other things",
            Status.NOT_AN_IMAGE,
            "text/html, begins with",
        ),
    ],
)
def test_the_detail_says_what_an_unusable_body_looks_like(chunk: bytes, status: Status, detail: str) -> None:
    found, detail_found = failure(chunk, content_type="text/html")
    assert found is status
    assert detail_found is not None
    assert detail_found.startswith(detail)


def test_html_is_refused_before_it_ends() -> None:
    body = ResponseBody(10_000, "text/html")
    with pytest.raises(FetchError):
        body.add(HTML)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
@pytest.mark.parametrize("size", [1, 50, 100_000])
def test_unrequested_compression_is_undone(compress: object, size: int) -> None:
    compressed = compress(JPEG)  # type: ignore[operator]
    chunks = [compressed[start : start + size] for start in range(0, len(compressed), size)]
    assert collect(*chunks, coding="gzip" if compress is gzip.compress else "deflate") == JPEG


def test_a_compressed_body_shorter_than_the_check_is_decompressed() -> None:
    tiny = b"GIF89a"
    compressed = zlib.compress(tiny)
    assert len(compressed) < sniff.FORMAT_HEAD_BYTES
    assert collect(compressed, coding="deflate") == tiny


def test_a_gzip_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(JPEG + bytes(50_000_000))
    assert len(bomb) < 60_000
    assert failure(bomb, max_bytes=100_000, coding="gzip")[0] is Status.BODY_TOO_LARGE


def test_a_gzip_bomb_in_many_small_chunks_is_too_large() -> None:
    bomb = gzip.compress(JPEG + bytes(50_000_000))
    chunks = [bomb[start : start + 10] for start in range(0, len(bomb), 10)]
    assert failure(*chunks, max_bytes=100_000, coding="gzip")[0] is Status.BODY_TOO_LARGE


def test_broken_compression_is_a_truncated_body_or_a_protocol_error() -> None:
    compressed = gzip.compress(JPEG * 100)
    assert failure(compressed[:-20], max_bytes=100_000, coding="gzip")[0] is Status.BODY_TRUNCATED
    assert failure(compressed[:12] + bytes(60), coding="gzip")[0] is Status.PROTOCOL_ERROR


@pytest.mark.parametrize("coding", ["gzip", "utf-8", "aws-chunked", "br"])
def test_a_wrong_content_encoding_on_a_plain_picture_is_ignored(coding: str) -> None:
    assert collect(JPEG, coding=coding) == JPEG


def test_unknown_compression_is_not_an_image() -> None:
    assert failure(b"\x1b\x03\x00\x00" + bytes(100), coding="br")[0] is Status.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\xff\xd8\xff\xdb", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF87a", "GIF"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "WEBP"),
        (b"BM\x36\x00\x0c\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28", "BMP"),
        (b"II*\x00", "TIFF"),
        (b"MM\x00*", "TIFF"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00mif1miaf", "AVIF"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00avifmiaf", "AVIF"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00heicmif1", "HEIC"),
        (b"\x00\x00\x00\x1cftypisom\x00\x00\x00\x00mp41", None),
        (b"RIFF\x00\x00\x00\x00AVI LIST", None),
        (b"", None),
        (b"%PDF-1.7", None),
    ],
)
def test_formats_are_recognized_by_their_magic_numbers(head: bytes, name: str | None) -> None:
    assert sniff.image_format(head + bytes(sniff.FORMAT_HEAD_BYTES)) == name


def test_bytes_after_a_compressed_body_are_ignored_up_to_the_limit() -> None:
    assert collect(gzip.compress(JPEG) + b"\x1f and more", coding="gzip") == JPEG
    body = ResponseBody(1_000_000, "image/jpeg", ["gzip"])
    body.add(gzip.compress(b"\xff\xd8\xff\xe0" + bytes(2_000)))
    with pytest.raises(FetchError) as refused:
        for _ in range(100):
            body.add(bytes(65_536))
    assert refused.value.status is Status.BODY_TOO_LARGE


def test_a_body_that_decompresses_to_nothing_is_limited_by_its_compressed_bytes() -> None:
    body, compressor = ResponseBody(100_000, "image/jpeg", ["gzip"]), zlib.compressobj(wbits=31)
    body.add(compressor.compress(b"\xff\xd8\xff\xe0" + bytes(2_000)) + compressor.flush(zlib.Z_FULL_FLUSH))
    with pytest.raises(FetchError) as refused:
        for _ in range(100_000):
            body.add(b"\x00\x00\x00\xff\xff")  # an empty stored block
    assert refused.value.status is Status.BODY_TOO_LARGE
