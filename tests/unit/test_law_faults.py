"""Invariant: no verdict depends on untrusted text. Words about machine faults in such text do not change the status of
a row."""

import errno
import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pairmill.pipeline.common.faults import Failure, LocalFault
from pairmill.pipeline.image.processor import ImageProcessor, ProcessedImage
from pairmill.schemas.errors import FailureKind
from pairmill.schemas.job.images import ImagesConfig
from tests.unit.test_law_answer import verdicts
from tests.unit.test_law_identity import uids, write_tar

WORDS = [
    "Insufficient memory, No space left on device",
    "[Errno 24] Too many open files",
    "Failed to allocate 1000000 bytes, Killed",
    "CUDA out of memory, MemoryError",
    "Object store full, OutOfDiskError",
    "timed out, connection refused, certificate",
    "decompression bomb",
]
NEUTRAL = "x"

ANSWERS = {
    "reason": "HTTP/1.1 503 {}\r\nContent-Length: 0\r\n\r\n",
    "reason of a picture": "HTTP/1.1 200 {}\r\nContent-Length: 9\r\n\r\nno pixels",
    "field": "HTTP/1.1 404 no\r\nServer: {}\r\nX-Error: {}\r\nContent-Length: 0\r\n\r\n",
    "body of an error": "HTTP/1.1 500 no\r\n\r\n{}",
    "body in place of a picture": "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n{}",
    "size of a chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n",
    "coding": "HTTP/1.1 200 OK\r\nContent-Encoding: {}\r\nContent-Length: 3\r\n\r\nabc",
    "status line": "{}\r\n\r\n",
    "location": "HTTP/1.1 302 Found\r\nLocation: http://{}/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("part", ANSWERS)
def test_law_faults_words_in_a_response_change_no_status(part: str, words: str) -> None:
    (spoken,) = verdicts(ANSWERS[part].replace("{}", words).encode(), [[]])
    (neutral,) = verdicts(ANSWERS[part].replace("{}", NEUTRAL * len(words)).encode(), [[]])
    if part == "location":  # no text with spaces is a host name, so the neutral text has spaces too
        (neutral,) = verdicts(ANSWERS[part].replace("{}", "a b, c").encode(), [[]])
    assert (spoken.status, spoken.http_status) == (neutral.status, neutral.http_status)


def jpeg(text: str) -> bytes:
    body = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(body, "JPEG", comment=text.encode())
    return body.getvalue()


def png(text: str) -> bytes:
    body, info = io.BytesIO(), PngInfo()
    info.add_text("Comment", text)
    Image.new("RGB", (40, 30), "red").save(body, "PNG", pnginfo=info)
    return body.getvalue()


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("make", [jpeg, png])
@pytest.mark.parametrize("kept", [1.0, 0.9, 0.5])
def test_law_faults_words_in_a_picture_change_no_status(make: object, kept: float, words: str) -> None:
    def processed(text: str) -> ProcessedImage:
        body = make(text)  # type: ignore[operator]
        found = ImageProcessor(ImagesConfig(size=20)).process(body[: int(kept * len(body))])
        return replace(found, detail=None)

    assert processed(words) == processed(NEUTRAL * len(words))


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError, KeyError, ConnectionError])
def test_law_faults_words_in_an_exception_do_not_blame_the_machine(kind: type[Exception], words: str) -> None:
    assert Failure.of(kind(words)).kind is FailureKind.SHARD


def test_law_faults_of_the_machine_fail_a_corpus_shard_and_other_errors_only_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", [(None, "a photo", 0), (None, "a dog", 1)])

    def fail_with(error: Exception) -> None:
        def header(self: ImageProcessor, body: bytes) -> None:
            raise error

        monkeypatch.setattr(ImageProcessor, "header", header)

    fail_with(ValueError("a bug that one picture triggers"))
    assert [status for _, status in uids(tmp_path / "rows", tmp_path / "a.tar", 10)] == ["row_error"] * 2
    fail_with(OSError(errno.EMFILE, "Too many open files"))
    with pytest.raises(LocalFault):
        uids(tmp_path / "shard", tmp_path / "a.tar", 10)
