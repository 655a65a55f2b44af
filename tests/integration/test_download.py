"""Tests the whole download stage against a real server on loopback."""

import asyncio
import errno
import hashlib
import io
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.common.progress import WorkProgress
from pairmill.pipeline.fetch import http_client
from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.byte_budget import Reservation
from pairmill.pipeline.fetch.deadline import Deadline
from pairmill.pipeline.fetch.downloader import Downloader
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.pairs import FETCHED, PICTURE, in_flight_schema
from tests.integration.web import HostileWeb, Request, redirect, response


def jpeg(seed: int, width: int = 96, height: int = 64) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def web() -> Iterator[HostileWeb]:
    with HostileWeb() as web:
        yield web


Open = Callable[..., Downloader]


def test_each_distinct_url_counts_as_one_item_and_only_pictures_add_bytes(
    web: HostileWeb, open_downloader: "Open"
) -> None:
    good, body = web.serve("/a.jpg", jpeg(1)), jpeg(1)
    gone = web.send("/gone", response(b"", "404 Not Found"))
    progress = WorkProgress()
    with progress.shard(rows=6) as part:
        open_downloader()(shard([good, good, gone, web.serve("/html", b"<html>")]), part)
        counts = progress.counts()
    assert (counts.items, counts.good_items, counts.num_bytes) == (3, 1, len(body))
    assert (counts.open_rows, progress.counts().finished_rows) == (6, 6)


@pytest.fixture
def open_downloader() -> Iterator[Open]:
    opened: list[Downloader] = []

    def open_(images: dict[str, object] | None = None, **fetch: Any) -> Downloader:
        settings = {"allow_networks": ["127.0.0.0/8"], "timeout_s": 5, "retries": 0, **fetch}
        job = {"source": {"paths": ["x"]}, "output": "unused", "fetch": settings, "images": images or {}}
        opened.append(Downloader(BuildJob.model_validate(job), "digest"))
        return opened[-1]

    yield open_
    for downloader in opened:
        downloader.close()


def test_no_request_starts_above_64_mb_and_bodies_fill_512_mb_before_they_grow_one_at_a_time(
    open_downloader: Open,
) -> None:
    budget = open_downloader()._start()._budget

    async def main() -> None:
        async with Deadline(60) as deadline:
            bodies = [Reservation(budget, deadline) for _ in range(4)]
            budget.reserve((64 << 20) - 1)
            await asyncio.wait_for(bodies[0].start(1), 1)
            assert budget.is_full
            budget.reserve((512 << 20) - (64 << 20) - 1)
            for body in bodies[1:3]:  # one fills the last byte, and one has the turn to grow above that
                await asyncio.wait_for(body.resize(1), 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bodies[3].resize(1), 0.05)

    asyncio.run(main())


def shard(
    urls: list[str | None], statuses: list[str] | None = None, digests: list[str | None] | None = None
) -> pa.Table:
    schema = in_flight_schema(pa.schema([("digest", pa.string())]))
    columns = {field.name: pa.nulls(len(urls), field.type) for field in schema}
    columns["row_id"] = columns["uid"] = pa.array([f"0:{row}" for row in range(len(urls))])
    columns["url"] = pa.array(urls, pa.string())
    columns["status"] = pa.array(statuses or ["ok"] * len(urls))
    columns["is_pair"] = pa.array([False] * len(urls))
    columns["digest"] = pa.array(digests or [None] * len(urls), pa.string())
    return pa.table(columns, schema=schema)


def rows(table: pa.Table) -> list[dict[str, object]]:
    table.validate(full=True)
    found: list[dict[str, object]] = table.to_pylist()
    return found


def test_a_good_row_has_the_right_value_in_every_column(web: HostileWeb, open_downloader: Open) -> None:
    body = jpeg(1)
    web.serve("/a.jpg", body)
    web.send("/moved", redirect("/a.jpg"))
    table = shard([web.url("/moved")])
    result = open_downloader(images={"size": 32, "md5": True})(table)
    assert result.schema.equals(table.schema, check_metadata=True)
    (row,) = rows(result)
    expected = {
        "row_id": "0:0",
        "status": "ok",
        "status_detail": None,
        "http_status": 200,
        "final_url": web.url("/a.jpg"),
        "content_type": "image/jpeg",
        "original_bytes": len(body),
        "fetch_attempts": 1,
        "sha256": hashlib.sha256(body).hexdigest(),
        "md5": hashlib.md5(body).hexdigest(),
        "original_format": "JPEG",
        "original_width": 96,
        "original_height": 64,
        "one_color": False,
        "width": 32,
        "height": 21,
    }
    assert {name: row[name] for name in expected} == expected
    assert 0 < row["fetch_s"] < 5
    assert row["fetched_at"].tzinfo is not None
    assert len(row["phash"]) == 16
    assert Image.open(io.BytesIO(row["image"])).size == (32, 21)


def test_rows_keep_their_order_whatever_order_the_responses_arrive_in(web: HostileWeb, open_downloader: Open) -> None:
    wait = random.Random(3)
    bodies = [jpeg(seed) for seed in range(60)]
    urls = [web.send(f"/{row}.jpg", wait.random() / 5, response(body)) for row, body in enumerate(bodies)]
    result = rows(open_downloader(per_host_concurrency=32)(shard(list(urls))))
    assert [row["row_id"] for row in result] == [f"0:{row}" for row in range(60)]
    assert [row["sha256"] for row in result] == [hashlib.sha256(body).hexdigest() for body in bodies]
    assert [row["final_url"] for row in result] == urls


def test_failures_have_a_reason_and_no_picture(web: HostileWeb, open_downloader: Open) -> None:
    truncated = jpeg(1)[:-300]
    urls = [
        web.serve("/page", b"<html>" + b" " * 2000, "text/html"),
        web.url("/missing"),
        web.serve("/cut.jpg", truncated),
        "http://10.0.0.1/a.jpg",
        None,
        web.serve("/good.jpg", jpeg(2)),
        web.serve("/never.jpg", jpeg(3)),
    ]
    statuses = ["ok"] * 6 + ["caption_missing"]
    page, missing, cut, private, no_url, good, never = rows(open_downloader()(shard(urls, statuses)))
    assert (page["status"], page["status_detail"]) == ("not_an_image", "text/html, looks like html")
    assert (page["http_status"], page["content_type"], page["sha256"]) == (200, "text/html", None)
    assert (missing["status"], missing["http_status"]) == ("http_4xx", 404)
    assert (cut["status"], cut["original_bytes"]) == ("image_corrupt", len(truncated))
    assert (cut["sha256"], cut["original_width"]) == (hashlib.sha256(truncated).hexdigest(), 96)
    assert (private["status"], private["http_status"], private["final_url"]) == ("address_refused", None, None)
    assert (no_url["status"], good["status"], never["status"]) == ("url_missing", "ok", "caption_missing")
    assert all(never[name] is None for name in [*FETCHED.names, *PICTURE.names, "image"])
    for row in (page, missing, cut, private, no_url, never):
        assert all(row[name] is None for name in [*PICTURE.names, "image"])
    assert web.hits["/never.jpg"] == 0


def test_a_url_is_fetched_once_per_shard(web: HostileWeb, open_downloader: Open) -> None:
    urls = [web.serve("/a.jpg", jpeg(1)), web.serve("/b.jpg", jpeg(2))]
    downloader = open_downloader()
    result = rows(downloader(shard([*urls, *urls, *urls])))
    assert web.hits == {"/a.jpg": 1, "/b.jpg": 1}
    assert result[0]["image"] == result[2]["image"] == result[4]["image"] != result[1]["image"]
    downloader(shard(list(urls)))
    assert web.hits == {"/a.jpg": 2, "/b.jpg": 2}


def test_content_is_compared_with_the_digest_that_each_row_expects(web: HostileWeb, open_downloader: Open) -> None:
    body = jpeg(1)
    url, other = web.serve("/a.jpg", body), web.serve("/b.jpg", b"\xff\xd8\xff\xe0 no picture at all " * 9)
    good = hashlib.sha256(body).hexdigest()
    digests = [good.upper(), "0" * 64, None, "f" * 64]
    same, changed, any_, unread = rows(open_downloader()(shard([url, url, url, other], digests=digests)))
    assert [row["status"] for row in (same, changed, any_, unread)] == [
        "ok",
        "content_changed",
        "ok",
        "content_changed",
    ]
    assert changed["status_detail"] == f"expected sha256 {'0' * 64}"
    assert (changed["sha256"], changed["image"], changed["phash"]) == (good, None, None)


def test_an_unexpected_error_costs_only_its_row(
    web: HostileWeb, open_downloader: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = ImageProcessor.process
    poison = jpeg(9)

    def explode(self: ImageProcessor, body: bytes) -> Any:
        if body == poison:
            raise ZeroDivisionError("deep inside\na codec")
        return process(self, body)

    monkeypatch.setattr(ImageProcessor, "process", explode)
    urls = [web.serve("/bad.jpg", poison), *(web.serve(f"/{seed}.jpg", jpeg(seed)) for seed in range(5))]
    bad, *others = rows(open_downloader()(shard(list(urls))))
    assert (bad["status"], bad["status_detail"]) == ("row_error", "ZeroDivisionError: deep inside a codec")
    assert {row["status"] for row in others} == {"ok"}
    assert "ZeroDivisionError" in caplog.text


def test_running_out_of_file_descriptors_fails_the_shard_and_blames_no_url(
    web: HostileWeb, open_downloader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_socket, no_files_left = http_client.open_allowed_socket, True

    def open_or_fail(guard: AddressGuard, info: Any) -> Any:
        if no_files_left:
            raise OSError(errno.EMFILE, "Too many open files")
        return open_socket(guard, info)

    monkeypatch.setattr(http_client, "open_allowed_socket", open_or_fail)
    downloader = open_downloader()
    urls = [web.serve(f"/{seed}.jpg", jpeg(seed)) for seed in range(5)]
    with pytest.raises(LocalFault, match="Too many open files"):
        downloader(shard(list(urls)))
    no_files_left = False
    assert {row["status"] for row in rows(downloader(shard(list(urls))))} == {"ok"}


def out_of_memory() -> None:
    raise MemoryError


def out_of_files() -> None:
    raise OSError(errno.EMFILE, "files")


def opencv_out_of_memory() -> None:
    cv2.resize(np.zeros((2, 2, 3), np.uint8), (1 << 30, 1 << 30))


@pytest.mark.parametrize("fail_here", [out_of_memory, out_of_files, opencv_out_of_memory])
def test_running_out_of_memory_or_file_descriptors_while_decoding_loses_no_row(
    web: HostileWeb, open_downloader: Open, monkeypatch: pytest.MonkeyPatch, fail_here: Callable[[], None]
) -> None:
    def fail(self: ImageProcessor, body: bytes) -> Any:
        fail_here()

    monkeypatch.setattr(ImageProcessor, "process", fail)
    with pytest.raises(LocalFault):
        open_downloader()(shard([web.serve("/a.jpg", jpeg(1))]))


HANGING_WORKER = """
import os, sys, time
from pairmill.pipeline.fetch import downloader
from pairmill.pipeline.image import processor
from pairmill.schemas.jobs import BuildJob
from tests.integration.test_download import shard

processor.plain_jpeg_size = processor.open_image = lambda *_: time.sleep(600)
downloader.DECODE_TIMEOUT_S, downloader.HANG_CHECK_S = 1.0, 0.2
fetch = {"allow_networks": ["127.0.0.0/8"]}
job = BuildJob.model_validate({"source": {"paths": ["x"]}, "output": "unused", "fetch": fetch})
downloader.Downloader(job, on_hang=lambda: os._exit(1))(shard([sys.argv[1]]))
"""


def test_a_worker_whose_decoder_hangs_exits_so_that_its_shard_is_retried(web: HostileWeb) -> None:
    url = web.serve("/a.jpg", jpeg(1))
    done = subprocess.run([sys.executable, "-c", HANGING_WORKER, url], timeout=60, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_concurrency_above_the_limit_on_open_files_is_refused(
    open_downloader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, 4_096))
    with pytest.raises(LocalFault, match=r"only 4096 files .* fetch\.concurrency=10000 needs 10256"):
        open_downloader(concurrency=10_000)(shard(["http://127.0.0.1/a.jpg"]))


def test_two_shards_are_downloaded_at_the_same_time(web: HostileWeb, open_downloader: Open) -> None:
    slow = [web.send(f"/slow{row}", 1.0, response(jpeg(row))) for row in range(3)]
    quick = [web.serve(f"/quick{row}", jpeg(row)) for row in range(50)]
    downloader = open_downloader()
    finished: list[str] = []

    def run(name: str, urls: list[str]) -> pa.Table:
        result = downloader(shard(list(urls)))
        finished.append(name)
        return result

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(run, "slow", slow), pool.submit(run, "quick", quick)
        assert {row["status"] for future in (first, second) for row in rows(future.result())} == {"ok"}
    assert finished == ["quick", "slow"]


def test_requests_of_all_shards_together_are_limited(web: HostileWeb, open_downloader: Open) -> None:
    web.send("/a.jpg", 0.02, response(jpeg(1)))
    downloader = open_downloader(concurrency=3, per_host_concurrency=100)
    tables = [shard([web.url(f"/a.jpg?{number}-{row}") for row in range(15)]) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(downloader, tables))
    assert web.max_concurrent["/a.jpg"] == 3


def decode_slowly(monkeypatch: pytest.MonkeyPatch, seconds: float, on_picture: Callable[[], None]) -> None:
    """Let each picture take longer to decode. `on_picture` is called before each."""
    process = ImageProcessor.process

    def slowly(self: ImageProcessor, data: bytes) -> Any:
        time.sleep(seconds)
        on_picture()
        return process(self, data)

    monkeypatch.setattr(ImageProcessor, "process", slowly)


def test_slow_decoding_delays_the_download(
    web: HostileWeb, open_downloader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies do not pile up: the server sees new requests only as pictures are decoded."""
    body = jpeg(1)
    ahead: list[int] = []
    decode_slowly(monkeypatch, 0.01, lambda: ahead.append(web.hits["/a.jpg"] - len(ahead) - 1))
    monkeypatch.setattr("pairmill.pipeline.fetch.downloader._MAX_BUFFERED_BYTES", 5 * len(body))
    web.serve("/a.jpg", body)
    urls = [web.url(f"/a.jpg?{row}") for row in range(150)]
    result = open_downloader(concurrency=4, per_host_concurrency=4)(shard(list(urls)))
    assert {row["status"] for row in rows(result)} == {"ok"}
    assert max(ahead) <= 5 + 4 + 2  # buffered bodies, requests in flight, pictures being decoded


def test_requests_that_wait_for_the_decoder_start_one_by_one_on_connections_that_are_free_again(
    web: HostileWeb, open_downloader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = jpeg(1)
    decode_slowly(monkeypatch, 0.002, lambda: None)
    monkeypatch.setattr("pairmill.pipeline.fetch.downloader._MAX_BUFFERED_BYTES", 40 * len(body))
    web.serve("/a.jpg", body)
    urls = [web.url(f"/a.jpg?{row}") for row in range(400)]
    result = open_downloader(concurrency=20, per_host_concurrency=20)(shard(list(urls)))
    assert {row["status"] for row in rows(result)} == {"ok"}
    assert web.connections <= 100  # 300 if all start at once when there is room, because few idle ones are kept


def test_an_empty_shard_or_one_with_nothing_to_fetch_starts_no_thread(open_downloader: Open) -> None:
    downloader = open_downloader()
    assert downloader(shard([])).num_rows == 0
    (row,) = rows(downloader(shard(["http://10.0.0.1/"], ["caption_missing"])))
    assert row["status"] == "caption_missing"
    assert not any(thread.name == "fetch" for thread in threading.enumerate())  # no thread was started


def test_closing_cancels_running_downloads(web: HostileWeb, open_downloader: Open) -> None:
    downloader = open_downloader(timeout_s=60)
    urls = [web.send(f"/{row}", 60.0) for row in range(20)]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(downloader, shard(list(urls)))
        while sum(web.hits.values()) < 5:
            time.sleep(0.01)
        started = time.monotonic()
        downloader.close()
        assert time.monotonic() - started < 20
        with pytest.raises(CancelledError):
            running.result(20)
    downloader.close()  # closing twice is harmless
    assert not any(thread.name.startswith(("fetch", "decode")) for thread in threading.enumerate())
    with pytest.raises(RuntimeError, match="closed"):
        downloader(shard(list(urls)))


def test_interrupting_the_caller_cancels_its_requests(
    web: HostileWeb, open_downloader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives in the waiting thread, but the requests in the other thread must end too."""
    gone = threading.Event()

    async def handler(request: Request, writer: Any) -> None:
        monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
        try:
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        finally:
            gone.set()

    def interrupt(self: Any, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    downloader = open_downloader(timeout_s=60)
    downloader(shard([web.serve("/warm", jpeg(1))]))
    url = web.route("/slow", handler)
    run = asyncio.run_coroutine_threadsafe

    def start_and_wait(coroutine: Any, loop: Any) -> Any:
        future = run(coroutine, loop)
        while not web.hits["/slow"]:
            time.sleep(0.01)
        return future

    monkeypatch.setattr("asyncio.run_coroutine_threadsafe", start_and_wait)
    with pytest.raises(KeyboardInterrupt):
        downloader(shard([url]))
    monkeypatch.undo()
    assert gone.wait(20)
