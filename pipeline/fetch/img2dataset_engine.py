"""The second download engine: img2dataset's own Downloader and Resizer (1.47), in our pipeline.

For comparing the two on the same rows, rules and outputs. What the web is allowed to do is ours: its urllib gets an
opener that connects only to allowed addresses, reads no more than `max_bytes`, and says truthfully who asks. What a
picture looks like is img2dataset's: no orientation, no profiles, 16 bits clipped.
"""

import hashlib
import http.client
import io
import logging
import os
import socket
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.fetch import optout
from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.dns import AddressRefused
from pairmill.pipeline.fetch.fetcher import Fetched
from pairmill.pipeline.fetch.url_join import Download, fill_columns, urls_to_fetch
from pairmill.pipeline.image.phash import phash
from pairmill.pipeline.image.processor import Picture
from pairmill.pipeline.rules import SourceRules
from pairmill.pipeline.rules.url import refused_redirect
from pairmill.schemas.jobs import BuildJob, FetchConfig
from pairmill.schemas.status import Status

_PNG_LEVEL = 6

_STATUS_BY_WORDS: tuple[tuple[str, Status], ...] = (
    ("X-Robots-Tag", Status.OPTED_OUT),
    ("is not a public address", Status.ADDRESS_REFUSED),
    ("leads to", Status.ADDRESS_REFUSED),
    ("HTTP Error 429", Status.HTTP_429),
    ("HTTP Error 4", Status.HTTP_4XX),
    ("HTTP Error 5", Status.HTTP_5XX),
    ("HTTP Error 3", Status.BAD_REDIRECT),
    ("timed out", Status.TIMEOUT),
    ("Errno -", Status.DNS_ERROR),  # getaddrinfo's numbers are negative
    ("idna", Status.DNS_ERROR),
    ("CERTIFICATE", Status.TLS_ERROR),
    ("SSL", Status.TLS_ERROR),
    ("Connection refused", Status.CONNECT_ERROR),
    ("No route to host", Status.CONNECT_ERROR),
    ("Network is unreachable", Status.CONNECT_ERROR),
    ("Connection reset", Status.CONNECTION_LOST),
    ("Remote end closed", Status.CONNECTION_LOST),
    ("more bytes than", Status.BODY_TOO_LARGE),
    ("IncompleteRead", Status.BODY_TRUNCATED),
    ("unknown url type", Status.BAD_REDIRECT),
    ("not allowed", Status.BAD_REDIRECT),
)
"""img2dataset keeps an exception's words and nothing else."""


class Img2datasetDownloader:
    """Stands in for the Downloader of download.py. One shard at a time: its Resizer redirects the process's stderr."""

    def __init__(self, job: BuildJob, sha256_column: str | None = None) -> None:
        self._sha256_column = sha256_column
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # asks the network otherwise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # imghdr, which is deprecated, and from Python 3.13 on a package of its own
            from img2dataset.downloader import Downloader
            from img2dataset.resizer import Resizer
        logging.getLogger("exifread").setLevel(logging.ERROR)
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="pairmill-img2dataset-")
        urllib.request.install_opener(_opener(job.fetch, SourceRules.of(job)))
        images, fetch = job.images, job.fetch
        resizer = Resizer(
            image_size=images.size,
            resize_mode=images.resize_mode,
            resize_only_if_bigger=images.resize_only_if_bigger,
            encode_quality=_PNG_LEVEL if images.format == "png" else images.quality,
            encode_format=images.format,
            skip_reencode=images.skip_reencode,
        )
        self._collector = _Collector(resizer)
        self._downloader = Downloader(
            sample_writer_class=lambda *_: self._collector,
            resizer=self._collector.resize,
            thread_count=fetch.concurrency,
            save_caption=False,
            extract_exif=False,
            output_folder=self._folder.name,
            column_list=["url"],
            timeout=fetch.timeout_s,
            number_sample_per_shard=max(job.shard_rows, 2),
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format=images.format,
            retries=fetch.retries,
            user_agent_token=optout.agent_token(fetch.user_agent),
            disallowed_header_directives=sorted(optout.REFUSING) if fetch.respect_x_robots_tag else None,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """The same rows with status, fetched, picture and image columns filled in."""
        wanted = urls_to_fetch(table, self._sha256_column)
        with self._lock:
            downloads = self._download(list(wanted), wanted) if wanted else {}
        return fill_columns(table, downloads, self._sha256_column)

    def close(self) -> None:
        """Remove what img2dataset writes beside its shards, and give urllib its own opener back."""
        urllib.request.install_opener(None)
        self._folder.cleanup()

    def _download(self, urls: list[str], wanted: Mapping[str, frozenset[str]]) -> dict[str, Download]:
        path = Path(self._folder.name, "shard.arrow")
        table = pa.table({"url": urls})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        self._collector.downloads = {}
        self._downloader.download_shard((0, str(path)))
        found = self._collector.downloads
        missing = Download(Status.ROW_ERROR, "img2dataset gave no result")
        return {url: _checked(found.get(url, missing), wanted[url]) for url in urls}


class _Collector:
    """img2dataset's sample writer, into memory. It calls `resize` and then `write` for one picture after the other."""

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer
        self._original = b""
        self.downloads: dict[str, Download] = {}

    def resize(self, stream: io.BytesIO, boxes: Any = None) -> Any:
        self._original = stream.getvalue()
        return self._resizer(stream, boxes)

    def write(self, image: bytes | None, key: str, caption: str | None, meta: Mapping[str, Any]) -> None:
        words = clean_text(meta["error_message"])
        if meta["status"] == "failed_to_download":
            download = Download(_status(words), words, _fetched(_status(words), words))
        else:
            body, self._original = self._original, b""
            digests = hashlib.sha256(body).hexdigest(), hashlib.md5(body, usedforsecurity=False).hexdigest()
            picture = Picture(Status.IMAGE_CORRUPT, words) if image is None else _picture(image, meta)
            fetched = _fetched(Status.OK, None)
            download = Download(picture.status, picture.detail, fetched, len(body), *digests, picture)
        self.downloads[meta["url"]] = download

    def close(self) -> None: ...


def _checked(download: Download, expected: frozenset[str]) -> Download:
    if expected and download.sha256 is not None and download.sha256 not in expected:
        return Download(
            Status.CONTENT_CHANGED, None, download.fetched, download.original_bytes, download.sha256, download.md5
        )
    return download


def _status(words: str | None) -> Status:
    return next((status for part, status in _STATUS_BY_WORDS if part in (words or "")), Status.PROTOCOL_ERROR)


def _fetched(status: Status, words: str | None) -> Fetched:
    """What img2dataset lets one know: that it asked, and when it was done."""
    code = words.split()[2].rstrip(":") if words and words.startswith("HTTP Error ") else "200" if words is None else ""
    return Fetched(
        status=status,
        detail=words,
        http_status=int(code) if code.isdigit() else None,
        final_url=None,
        content_type=None,
        num_bytes=None,
        attempts=1,
        seconds=0.0,
        fetched_at=datetime.now(UTC),
        body=None,
    )


def _picture(image: bytes, meta: Mapping[str, Any]) -> Picture:
    decoded = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    pixels = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return Picture(
        status=Status.OK,
        original_width=meta["original_width"],
        original_height=meta["original_height"],
        image=image,
        width=meta["width"],
        height=meta["height"],
        phash=phash(np.asarray(pixels, np.uint8)),
        one_color=bool(np.ptp(pixels.reshape(-1, 3), axis=0).max() <= 8),
    )


# urllib within our limits


def _opener(config: FetchConfig, rules: SourceRules) -> urllib.request.OpenerDirector:
    """http and https, redirects between them, and nothing else: no files, no FTP, no proxies from the environment."""

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            if (refusal := refused_redirect(newurl, rules)) is not None:
                raise OSError(f"redirect not allowed: {refusal[0]}: {refusal[1]}")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    guard = AddressGuard(config.allow_networks)

    def connect(address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
        """As socket.create_connection, to allowed addresses only; what was checked is what is connected to."""
        error: Exception = OSError(f"{address[0]} has no address")
        for *_, (host, port, *_) in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            if (refusal := guard.refusal(str(host))) is not None:
                error = AddressRefused(refusal)
                continue
            try:
                return socket.create_connection((str(host), int(port)), config.connect_timeout_s)
            except OSError as failure:
                error = failure
        raise error

    def bounded(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        read, ends = response.read, time.monotonic() + config.timeout_s

        def read_bounded(amount: int | None = None) -> bytes:
            chunks, size = [], 0
            while chunk := read(1 << 16):
                chunks.append(chunk)
                size += len(chunk)
                if size > config.max_bytes:
                    raise OSError(f"more bytes than {config.max_bytes}")
                if time.monotonic() > ends:
                    raise TimeoutError("timed out")
            return b"".join(chunks)

        response.read = read_bounded  # type: ignore[method-assign,assignment]
        return response

    def handler(base: Any, connection: Any, scheme: str) -> Any:
        def open_(self: Any, request: urllib.request.Request) -> Any:
            request.headers["User-agent"] = config.user_agent

            def make(*arguments: Any, **options: Any) -> Any:
                made = connection(*arguments, **options)
                made._create_connection = connect
                return made

            return bounded(self.do_open(make, request))

        return type(f"Guarded{base.__name__}", (base,), {f"{scheme}_open": open_})()

    opener = urllib.request.OpenerDirector()
    for each in (
        handler(urllib.request.HTTPHandler, http.client.HTTPConnection, "http"),
        handler(urllib.request.HTTPSHandler, http.client.HTTPSConnection, "https"),
        urllib.request.HTTPDefaultErrorHandler(),
        Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(each)
    return opener
