"""Tests img2dataset's engine in our pipeline: the same rows and outputs as with our own, and the same limits."""

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.fetch.img2dataset_engine import Img2datasetDownloader
from pairmill.schemas.jobs import BuildJob
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import dataset, job, mixed_rows, sequentially, write_input
from tests.integration.test_download import jpeg, rows, shard
from tests.integration.test_fetch import JPEG, _endless
from tests.integration.web import HostileWeb, Request, redirect, response


@pytest.mark.filterwarnings("ignore")
def test_both_engines_give_the_same_rows_and_statuses(web: PictureWeb, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.parquet", mixed_rows(web))
    for engine in ("aiohttp", "img2dataset"):
        fetch = {"engine": engine, "timeout_s": 5, "retries": 0, "allow_networks": ["127.0.0.0/8"]}
        sequentially(job(source, tmp_path / engine, fetch=fetch, images={"md5": True}))
    ours, theirs = ([m.statuses for m in read_manifests(Store(str(tmp_path / e)))] for e in ("aiohttp", "img2dataset"))
    assert ours == theirs
    one, other = (dataset(tmp_path / engine, "pairs") for engine in ("aiohttp", "img2dataset"))
    for name in (
        "row_id",
        "uid",
        "sha256",
        "md5",
        "width",
        "height",
        "original_width",
        "original_height",
        "original_bytes",
    ):
        assert one[name].equals(other[name]), name
    assert verify(Store(str(tmp_path / "img2dataset"))).problems == []


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("fetch", {"per_host_concurrency": 2}),
        ("fetch", {"per_host_interval_s": 0.1}),
        ("fetch", {"respect_robots_txt": True}),
        ("images", {"max_pixels": 1_000_000}),
    ],
)
def test_settings_that_img2dataset_cannot_enforce_are_refused(section: str, settings: dict[str, object]) -> None:
    values: dict[str, object] = {"source": {"paths": ["x"]}, "output": "unused", "fetch": {"engine": "img2dataset"}}
    stated = BuildJob.model_validate(values).model_dump(
        mode="json"
    )  # job.yaml spells out the defaults, which must not be refused
    assert BuildJob.model_validate(stated).fetch.engine == "img2dataset"
    with pytest.raises(ValueError, match="engine img2dataset does not support"):
        BuildJob.model_validate({**stated, section: {**stated[section], **settings}})


@pytest.fixture
def hostile() -> Iterator[HostileWeb]:
    with HostileWeb() as hostile:
        yield hostile


async def _drip(writer: Any, head: bytes) -> None:
    writer.write(head)
    while not writer.is_closing():
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.2)


async def _dripping_head(request: Request, writer: Any) -> None:
    await _drip(writer, b"HTTP/1.1 200 OK\r\nX: ")


async def _dripping_body(request: Request, writer: Any) -> None:
    await _drip(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n" + JPEG)


async def _cut(request: Request, writer: Any) -> None:
    writer.write(response(jpeg(4), length=40_000))
    writer.close()


async def _endless_redirect(request: Request, writer: Any) -> None:
    writer.write(b"HTTP/1.1 302 Found\r\nLocation: /good.jpg\r\n\r\n")
    while not writer.is_closing():
        writer.write(bytes(10_000))
        await writer.drain()


@pytest.mark.filterwarnings("ignore")
def test_running_out_of_file_descriptors_fails_the_shard_and_blames_no_url(
    hostile: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_files_left(*arguments: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "create_connection", no_files_left)
    fetch = {"engine": "img2dataset", "retries": 0, "allow_networks": ["127.0.0.1/32"]}
    values = {"source": {"paths": ["x"]}, "output": "unused", "fetch": fetch}
    downloader = Img2datasetDownloader(BuildJob.model_validate(values), "digest")
    with pytest.raises(LocalFault, match="Too many open files"):
        downloader(shard([hostile.serve("/good.jpg", jpeg(1))]))
    downloader.close()


@pytest.fixture
def dripping_handshake() -> Iterator[str]:
    """A URL whose server begins a TLS record of 16 kB and sends a byte of it now and then."""

    def serve() -> None:
        with server.accept()[0] as connection, suppress(OSError):
            connection.sendall(bytes.fromhex("1603034000"))
            while True:
                connection.sendall(b"a")
                time.sleep(0.2)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}/a.jpg"
        thread.join()


@pytest.mark.filterwarnings("ignore")
def test_img2datasets_requests_have_the_same_limits_as_ours(hostile: HostileWeb, dripping_handshake: str) -> None:
    with HostileWeb("127.0.0.2") as private:
        urls = {
            hostile.serve("/good.jpg", jpeg(1)): "ok",
            private.serve("/a.jpg", jpeg(1)): "address_refused",
            hostile.send("/to-private", redirect(private.url("/a.jpg"))): "address_refused",
            hostile.send("/to-file", redirect("file:///etc/passwd")): "bad_redirect",
            hostile.route("/endless.jpg", _endless(JPEG)): "body_too_large",
            hostile.send("/silent.jpg", 60.0): "timeout",
            hostile.route("/dripping-head.jpg", _dripping_head): "timeout",
            hostile.route("/dripping-body.jpg", _dripping_body): "timeout",
            dripping_handshake: "timeout",
            hostile.route("/cut.jpg", _cut): "body_truncated",
            hostile.send("/empty.jpg", response(b"")): "empty_body",
            hostile.send("/page.jpg", response(b"<!doctype html><p>gone")): "not_an_image",
            hostile.send("/300.jpg", response(b"", "300 Multiple Choices")): "http_other",
            hostile.send("/gone.jpg", response(b"", "404 Not Found")): "http_4xx",
            hostile.send("/liar.jpg", response(b"", "404 X-Robots-Tag timed out SSL: CERTIFICATE")): "http_4xx",
            hostile.route("/endless-redirect", _endless_redirect): "body_too_large",
            hostile.send("/busy.jpg", response(b"", "503 Service Unavailable")): "http_5xx",
            hostile.send("/noai.jpg", response(jpeg(1), headers={"X-Robots-Tag": "noai"})): "opted_out",
            hostile.serve("/broken.jpg", jpeg(1)[:400]): "image_corrupt",
            hostile.send("/203.jpg", response(jpeg(2), "203 Non-Authoritative Information")): "ok",
            hostile.send("/206.jpg", response(jpeg(3), "206 Partial Content")): "http_other",
            hostile.send("/redirected", redirect("/203.jpg")): "ok",
            f" {hostile.send('/redirected-as-well', redirect('/203.jpg'))} ": "ok",
            hostile.send("/redirected-twice", redirect("/redirected")): "bad_redirect",
            "http://no-such-host.invalid/a.jpg": "dns_error",
        }
        settings: dict[str, object] = {"timeout_s": 2, "retries": 0, "max_bytes": 50_000, "max_redirects": 1}
        settings["allow_networks"] = ["127.0.0.1/32"]
        values = {"source": {"paths": ["x"]}, "output": "unused", "fetch": {"engine": "img2dataset", **settings}}
        downloader = Img2datasetDownloader(BuildJob.model_validate(values), "digest")
        found = rows(downloader(shard(list(urls))))
        downloader.close()
        assert {row["url"]: row["status"] for row in found} == urls
        unknown = ("http_status", "content_type", "fetch_attempts", "fetch_s")
        assert {row[name] for row in found if row["status"] == "ok" for name in unknown} == {None}
        final = {row["url"]: row["final_url"] for row in found}
        assert {url: end for url, end in final.items() if end not in (url, None)} == {
            hostile.url("/redirected"): hostile.url("/203.jpg"),
            f" {hostile.url('/redirected-as-well')} ": hostile.url("/203.jpg"),
            hostile.url("/redirected-twice"): hostile.url("/redirected"),
        }
        answered = {hostile.url("/to-private"), hostile.url("/dripping-body.jpg")}
        silent = {url for url, status in urls.items() if status in ("address_refused", "timeout", "dns_error")}
        assert {url for url, end in final.items() if end is None} == silent - answered
        assert private.connections == 0
        assert all("pairmill" in request.headers["user-agent"] for request in hostile.requests)
