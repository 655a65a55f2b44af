"""A decoder that dies or hangs. No picture here does that to the real one, so a child is told what to do instead."""

import io
import os
import time

import pytest
from PIL import Image

from pipeline import isolate
from pipeline.images import ImageProcessor, Picture
from pipeline.isolate import IsolatedProcessor
from schemas.jobs import ImagesConfig
from schemas.status import Status


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


def fragile(body: bytes) -> Picture:
    """Runs in the child, in place of isolate._process."""
    if body == b"dies":
        os.abort()
    if body == b"hangs":
        time.sleep(60)
    return ImageProcessor(ImagesConfig()).process(body)


def test_only_the_picture_that_kills_or_hangs_the_decoder_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_process", fragile)
    processor = IsolatedProcessor(ImagesConfig(), timeout_s=10)
    bodies = [png("red"), b"dies", png("green"), b"hangs", png("blue")]
    statuses = [processor.process(body).status for body in bodies]
    processor.close()
    assert statuses == [Status.OK, Status.DECODER_CRASHED, Status.OK, Status.DECODER_CRASHED, Status.OK]


def test_the_child_gives_what_the_thread_gives() -> None:
    config = ImagesConfig(size=4)
    processor = IsolatedProcessor(config)
    assert processor.process(png("red")) == ImageProcessor(config).process(png("red"))
    processor.close()
