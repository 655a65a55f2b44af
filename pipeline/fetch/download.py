"""The download stage: a shard's URLs become its stored pictures.

    the calling thread    waits, then fills the columns in row order
    the loop's thread     one event loop and one Fetcher for all shards: hundreds of requests in flight
    decoding threads      checksums, pixels, the stored picture

Several shards may be in work at the same time, so that the slow tail of one overlaps the head of the next.
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from pairmill.pipeline.common.faults import local_fault
from pairmill.pipeline.common.text import describe
from pairmill.pipeline.fetch.fetcher import Fetched, Fetcher
from pairmill.pipeline.fetch.slots import ByteBudget
from pairmill.pipeline.fetch.url_join import Download, fill_columns, interleave_hosts, urls_to_fetch
from pairmill.pipeline.image.isolated import DECODE_TIMEOUT_S, IsolatedProcessor
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.rules import SourceRules
from pairmill.pipeline.rules.url import refused_redirect
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.status import Status

_log = logging.getLogger(__name__)

_MOST_BYTES = 256 << 20
"""Bodies that may be arriving or waiting for a decoding thread before no new request starts. What is in flight by then
still arrives, up to twice this and one body and a chunk more."""

HANG_CHECK_S = 10.0

_WINDOW = 8192
"""URLs of one shard that may have a task at the same time: bounds memory where shards are very long."""


class Downloader:
    """Fetches and decodes the rows of a shard that are still `ok`. Callable by several threads at once."""

    def __init__(
        self,
        job: BuildJob,
        sha256_column: str | None = None,
        isolate_decoder: bool = False,
        on_hang: Callable[[], None] | None = None,
    ) -> None:
        """`isolate_decoder`: decode in a child process. `on_hang`: called when a decoder hangs."""
        self._job = job
        self._sha256_column = sha256_column
        self._on_hang = on_hang
        self._processor = IsolatedProcessor(job.images) if isolate_decoder else ImageProcessor(job.images)
        self._start_lock = threading.Lock()
        self._engine: _Engine | None = None
        self._closed = False

    def __call__(self, table: pa.Table) -> pa.Table:
        """The same rows with status, fetched, picture and image columns filled in."""
        wanted = urls_to_fetch(table, self._sha256_column)
        downloads = self._start().run(wanted) if wanted else {}
        return fill_columns(table, downloads, self._sha256_column)

    def close(self) -> None:
        """Stop what is under way, end the threads, close the connections. Call it once no more shards come."""
        with self._start_lock:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        if isinstance(self._processor, IsolatedProcessor):
            self._processor.close()

    def _start(self) -> "_Engine":
        with self._start_lock:
            if self._closed:
                raise RuntimeError("this Downloader is closed")
            if self._engine is None:
                self._engine = _Engine(self._job, self._processor, self._on_hang)
            return self._engine


class _Engine:
    """The threads behind a Downloader: started once, used for all shards."""

    def __init__(
        self, job: BuildJob, processor: ImageProcessor | IsolatedProcessor, on_hang: Callable[[], None] | None
    ) -> None:
        self._config = job.fetch
        self._on_hang = on_hang
        self._decoding: dict[int, float] = {}  # thread -> since when it is at its picture
        self._refused_redirect = partial(refused_redirect, rules=SourceRules.of(job))
        self._processor = processor
        self._decoders = ThreadPoolExecutor(job.run.decode_threads, thread_name_prefix="decode")
        self._budget = ByteBudget(_MOST_BYTES)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started: Future[None] = Future()
        # A daemon: an interpreter that ends without close() must not wait for slow servers.
        self._thread = threading.Thread(target=self._serve, args=(started,), name="fetch", daemon=True)
        self._thread.start()
        started.result()

    def run(self, wanted: Mapping[str, frozenset[str]]) -> dict[str, Download]:
        """Download URLs (each with the SHA-256 that may be expected, empty for any). Blocks the calling thread."""
        shard = asyncio.run_coroutine_threadsafe(self._download_all(wanted), self._loop)
        try:
            return shard.result()
        except BaseException:  # Ctrl-C here must end the requests over there
            shard.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._decoders.shutdown(wait=True, cancel_futures=True)

    def _serve(self, started: "Future[None]") -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_stopped(started))  # leaving cancels the shards under way

    async def _until_stopped(self, started: "Future[None]") -> None:
        try:
            async with Fetcher(self._config, self._budget, self._refused_redirect) as self._fetcher:
                started.set_result(None)
                if self._on_hang is not None:
                    self._watching = asyncio.create_task(
                        self._watch_decoders(self._on_hang)
                    )  # kept, or it could be collected
                await self._stop.wait()
                await _cancel_others()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _watch_decoders(self, on_hang: Callable[[], None]) -> None:
        """Only the end of the process frees a thread that hangs in C code; its shards are done again, carefully."""
        while True:
            await asyncio.sleep(HANG_CHECK_S)
            since = min(self._decoding.values(), default=time.monotonic())
            if time.monotonic() - since > DECODE_TIMEOUT_S:
                on_hang()

    async def _download_all(self, wanted: Mapping[str, frozenset[str]]) -> dict[str, Download]:
        downloads: dict[str, Download] = {}
        window = asyncio.Semaphore(_WINDOW)

        async def one(url: str) -> None:
            try:
                downloads[url] = await self._guarded(url, wanted[url])
            finally:
                window.release()

        try:
            async with asyncio.TaskGroup() as group:
                for url in interleave_hosts(wanted):
                    await window.acquire()
                    group.create_task(one(url))
        except BaseExceptionGroup as faults:  # hundreds of requests fail the same way: one of them says it all
            raise faults.exceptions[0] from None
        return downloads

    async def _guarded(self, url: str, expected: frozenset[str]) -> Download:
        """The row border: what goes wrong with one URL stays with it, unless this machine is at fault."""
        try:
            return await self._download(url, expected)
        except Exception as error:
            if (fault := local_fault(error)) is not None:
                raise fault from error
            _log.exception("unexpected error for %s", url)
            return Download(Status.ROW_ERROR, describe(error))

    async def _download(self, url: str, expected: frozenset[str]) -> Download:
        fetched = await self._fetcher.fetch(url)
        body = fetched.body
        if body is None:
            return Download(fetched.status, fetched.detail, fetched)
        try:
            return await self._loop.run_in_executor(self._decoders, self._decode, fetched, expected)
        finally:
            self._budget.give_back(len(body))

    def _decode(self, fetched: Fetched, expected: frozenset[str]) -> Download:
        """On a decoding thread: checksums, then the picture, unless no row wants these bytes."""
        self._decoding[threading.get_ident()] = time.monotonic()
        try:
            return self._decode_now(fetched, expected)
        finally:
            del self._decoding[threading.get_ident()]

    def _decode_now(self, fetched: Fetched, expected: frozenset[str]) -> Download:
        body = fetched.body or b""
        sha256, md5 = hashlib.sha256(body).hexdigest(), hashlib.md5(body, usedforsecurity=False).hexdigest()
        without_body = fetched.without_body()
        if expected and sha256 not in expected:
            return Download(Status.CONTENT_CHANGED, None, without_body, len(body), sha256, md5)
        picture = self._processor.process(body)
        return Download(picture.status, picture.detail, without_body, len(body), sha256, md5, picture)


async def _cancel_others() -> None:
    """Cancel every other task of this loop and wait for them, while the session is still open."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
