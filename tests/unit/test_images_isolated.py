"""Tests a decoder that dies or hangs. No test picture makes the real decoder do so, so the tests replace it."""

import io
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from pairmill.pipeline.common.child import Child, ChildDied
from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.image import isolated as isolate
from pairmill.pipeline.image.isolated import IsolatedProcessor
from pairmill.pipeline.image.processor import ImageProcessor, ProcessedImage
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


def fragile(body: bytes) -> ProcessedImage:
    """A replacement for isolate._process that dies or hangs on some bodies. Runs in the child."""
    if body == b"dies":
        os.abort()
    if body == b"hangs":
        time.sleep(60)
    return ImageProcessor(ImagesConfig()).process(body)


def test_only_the_picture_that_kills_or_hangs_the_decoder_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_process", fragile)
    processor = IsolatedProcessor(ImagesConfig())
    statuses = []
    for body in (png("red"), b"dies", png("green"), b"hangs", png("blue")):
        monkeypatch.setattr(processor, "_timeout_s", 1 if body == b"hangs" else 60)
        statuses.append(processor.process(body).status)
    processor.close()
    assert statuses == [Status.OK, Status.DECODER_CRASHED, Status.OK, Status.DECODER_CRASHED, Status.OK]


def test_the_child_ends_with_its_worker(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pairmill.pipeline.image.isolated import IsolatedProcessor\n"
        "from pairmill.schemas.jobs import ImagesConfig\n"
        "if __name__ == '__main__':\n"
        "    processor = IsolatedProcessor(ImagesConfig())\n"
        "    processor.process(b'x')\n"
        "    print(*processor._child._pool._processes, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    child = int(done.stdout)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_child_that_cannot_start_is_a_local_fault() -> None:
    multiprocessing.set_executable("/bin/false")
    try:
        with pytest.raises(LocalFault, match="cannot start a child process"):
            IsolatedProcessor(ImagesConfig()).process(png("red"))
    finally:
        multiprocessing.set_executable(sys.executable)


def test_the_child_returns_the_same_result_as_the_processor_itself() -> None:
    config = ImagesConfig(size=4)
    processor = IsolatedProcessor(config)
    assert processor.process(png("red")) == ImageProcessor(config).process(png("red"))
    processor.close()


def _raises(kind: str) -> None:
    if kind == "exit":
        sys.exit(3)
    raise TimeoutError("raised by the function")


def _nothing() -> None: ...


@pytest.mark.parametrize(
    ("kind", "says"), [("timeout", "TimeoutError: raised by the function"), ("exit", "SystemExit: 3")]
)
def test_an_exception_in_the_function_is_not_reported_as_the_death_of_its_process(kind: str, says: str) -> None:
    child = Child(_nothing)
    with pytest.raises(RuntimeError, match=says) as caught:
        child.call(_raises, kind, timeout_s=30)
    assert not isinstance(caught.value, ChildDied)
    assert child.call(len, "four", timeout_s=30) == 4  # in the same child
    child.close()
