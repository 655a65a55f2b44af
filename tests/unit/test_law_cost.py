"""Invariant: a picture's cost is limited to 8 bytes x `images.max_pixels` of memory and 5 s of CPU time."""

import multiprocessing
import re
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image

from pairmill.pipeline.image import cost
from pairmill.pipeline.image.decode import open_image
from pairmill.pipeline.image.memory_gate import MemoryGate
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.fetch import FetchConfig
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status
from tests.hostile_pictures import (
    Hostile,
    bmp_run_lengths,
    lossless_webp,
    metadata_without_end,
    most_expensive_accepted,
    png_of_zeros,
    refused,
)
from tests.picture_grid import photo, saved

MAX_PEAK_BYTES = 1_000_000_000
START_BYTES = 160_000_000
"""Memory of a process with Ray and the downloader before its first picture. The tests add the growth that they measure
to this number, because the memory of the test process itself includes the test pictures."""
MAX_CPU_S = 5.0

IS_LONG_RUN = settings.default.max_examples > 100
MEGAPIXELS = 99.0 if IS_LONG_RUN else 1.5
THREADS = 4
SLACK_BYTES = 60_000_000  # for tables, bands and the stored picture


def _peak_bytes() -> int:
    """Peak memory of this process since the last call of `_forget_peak`."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(picture: Hostile) -> tuple[str, str, int, int, float]:
    """(name, status, peak memory in bytes, memory before in bytes, CPU seconds), with the default settings."""
    processor = ImageProcessor(ImagesConfig())
    _forget_peak()
    before, started = _peak_bytes(), time.process_time()
    status = processor.process(picture.body).status
    return picture.name, status.value, _peak_bytes(), before, time.process_time() - started


@pytest.fixture(scope="module")
def child() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


HOSTILE = list(refused())


@pytest.mark.parametrize("picture", HOSTILE, ids=lambda picture: picture.name)
def test_a_picture_that_costs_too_much_is_refused_by_its_header(picture: Hostile, child: ProcessPoolExecutor) -> None:
    _, status, peak, before, cpu_s = child.submit(measure, picture).result()
    if picture.status is not None:
        assert status == picture.status.value
    assert cpu_s < MAX_CPU_S
    if status == "image_bomb":
        assert peak - before < 100_000_000 + 10 * len(picture.body)  # nothing was decoded
    assert START_BYTES + peak - before < MAX_PEAK_BYTES


METADATA = list(metadata_without_end())


@pytest.mark.parametrize("picture", METADATA, ids=lambda picture: picture.name)
def test_metadata_costs_little_whatever_its_amount(picture: Hostile, child: ProcessPoolExecutor) -> None:
    _, status, peak, before, cpu_s = child.submit(measure, picture).result(60)
    if picture.status is not None:
        assert status == picture.status.value
    assert cpu_s < MAX_CPU_S / 2
    assert peak - before < 80_000_000 + 4 * len(picture.body)


AWKWARD = Path(__file__).parents[2].parent / "shared" / "data" / "awkward"


@pytest.mark.skipif(not AWKWARD.is_dir(), reason=f"the awkward pictures are not at {AWKWARD}")
def test_no_awkward_picture_costs_too_much(child: ProcessPoolExecutor) -> None:
    pictures = [Hostile(path.name, path.read_bytes()) for path in sorted(AWKWARD.rglob("*.*"))]
    for name, _, peak, before, cpu_s in child.map(measure, pictures):
        assert START_BYTES + peak - before < MAX_PEAK_BYTES, name
        assert cpu_s < MAX_CPU_S, name


def test_the_most_expensive_accepted_pictures_stay_within_their_estimated_cost(child: ProcessPoolExecutor) -> None:
    ImageProcessor(ImagesConfig())  # sets Pillow's limit on pixels
    for picture in most_expensive_accepted(MEGAPIXELS):
        if len(picture.body) > FetchConfig().max_bytes:
            continue
        name, status, peak, before, cpu_s = child.submit(measure, picture).result()
        assert status in ("ok", "image_corrupt") or IS_LONG_RUN, name  # some kinds are refused at 99 megapixels
        assert cpu_s < MAX_CPU_S, name
        assert START_BYTES + peak - before < MAX_PEAK_BYTES, name
        if status == "image_bomb":
            continue
        header, opened = open_image(picture.body, ImagesConfig().max_pixels)
        opened.close()
        slack = SLACK_BYTES + 2 * len(picture.body)
        assert peak - before < header.cost.memory_bytes + slack, (name, peak - before, header.cost)


def test_pictures_decoded_at_the_same_time_share_one_memory_budget(child: ProcessPoolExecutor) -> None:
    side = int((max(MEGAPIXELS, 12.0) * 1e6) ** 0.5)
    extra = child.submit(_decode_together, png_of_zeros(side, side), side * side).result()
    assert extra < cost.BYTES_PER_PIXEL * side * side + THREADS * 30_000_000  # malloc keeps up to 30 MB per thread
    assert START_BYTES + extra < MAX_PEAK_BYTES


def _decode_together(body: bytes, max_pixels: int) -> int:
    """Increase of peak memory in bytes, in a process that decodes one picture on several threads."""
    cost.MIN_MEMORY_BYTES = 0
    processor = ImageProcessor(ImagesConfig(max_pixels=max_pixels))
    _forget_peak()
    before = _peak_bytes()
    with ThreadPoolExecutor(THREADS) as threads:
        assert {picture.status for picture in threads.map(processor.process, [body] * THREADS)} == {Status.OK}
    return _peak_bytes() - before


def test_the_gate_admits_no_more_than_fits() -> None:
    gate, inside, most = MemoryGate(100e6), 0, 0

    def decode(num_bytes: float) -> None:
        nonlocal inside, most
        with gate.entry() as reserve:
            reserve(num_bytes)
            inside += 1
            most = max(most, inside)
            time.sleep(0.002)
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode, [40e6] * 20 + [500e6] * 3))  # 500e6 exceeds the whole budget, so it runs alone
    assert most == 2


def test_the_gate_admits_pictures_in_order_of_arrival() -> None:
    """A steady stream of smaller pictures does not hold up a large one."""
    gate, entered = MemoryGate(100e6), list[int]()
    started = threading.Barrier(2)

    def hold(number: int, num_bytes: float, hold_s: float) -> None:
        with gate.entry() as reserve:
            reserve(num_bytes)
            if number == 0:
                started.wait()
            entered.append(number)
            time.sleep(hold_s)

    with ThreadPoolExecutor(8) as threads:
        threads.submit(hold, 0, 40e6, 0.3)
        started.wait()
        for number, num_bytes in enumerate((100e6, 40e6, 40e6), 1):
            threads.submit(hold, number, num_bytes, 0.01)
            time.sleep(0.05)
    assert entered[:2] == [0, 1]
    assert sorted(entered) == [0, 1, 2, 3]


def test_waiting_at_the_gate_does_not_count_as_hanging() -> None:
    gate, work_s = MemoryGate(100e6), 0.1
    longest = 0.0

    def decode(_: int) -> None:
        with gate.entry() as reserve:
            reserve(100e6)
            time.sleep(work_s)

    with ThreadPoolExecutor(8) as threads:
        pictures = [threads.submit(decode, number) for number in range(8)]
        while not all(picture.done() for picture in pictures):
            if (since := gate.oldest_start) is not None:
                longest = max(longest, time.monotonic() - since)
            time.sleep(0.005)
    assert work_s / 2 < longest < 4 * work_s  # not 8 * work_s, which includes the waiting
    assert gate.oldest_start is None


def test_chunks_before_the_pixels_of_a_webp_do_not_hide_its_cost() -> None:
    """Pillow refuses such a file, but accepts it once salvage.py has repaired it."""
    body, reserved = saved(Image.new("RGB", (1500, 1500)), "WEBP"), list[float]()
    pixels = b"EXIF\2\0\0\0ab" + body[12:]
    hidden = b"RIFF" + struct.pack("<I", 4 + len(pixels)) + b"WEBP" + pixels
    header, opened = open_image(hidden, 100_000_000, reserved.append)
    opened.close()
    assert reserved == [cost.decoding_cost("WEBP", "RGBA", (header.width, header.height)).memory_bytes]


def test_a_memory_error_is_blamed_on_the_picture_if_enough_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    body = saved(photo(), "PNG")
    for owner, name in ((Image, "open"), (Image.Image, "crop")):  # fails while opening, then while decoding
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            assert ImageProcessor(ImagesConfig()).process(body).status is Status.IMAGE_BOMB
            patch.setattr("pairmill.pipeline.image.decode.machine_has", lambda cost: False)
            with pytest.raises(MemoryError):
                ImageProcessor(ImagesConfig()).process(body)


def test_a_job_with_a_low_pixel_limit_accepts_every_format() -> None:
    for body in (lossless_webp(1400, 1400), bmp_run_lengths(1400, 1400, b"\0\1")):
        header, opened = open_image(body, 2_000_000)
        opened.close()
        assert (header.width, header.height) == (1400, 1400)
