"""The download stage: a shard's URLs become its stored pictures.

    the calling thread    waits, then sets the columns in row order
    the loop's thread     one event loop and one Fetcher for all shards: hundreds of requests in flight
    decoding threads      checksums, pixels, the stored picture

Several shards may be downloaded at the same time, so that the slow tail of one overlaps the start of the next.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from pairmill.pipeline.common.faults import local_fault
from pairmill.pipeline.common.progress import ShardProgress, unwatched
from pairmill.pipeline.common.text import describe
from pairmill.pipeline.fetch.byte_budget import ByteBudget
from pairmill.pipeline.fetch.fetch_url import Fetcher
from pairmill.pipeline.fetch.outcome import FetchOutcome
from pairmill.pipeline.fetch.outcome_columns import with_outcomes
from pairmill.pipeline.fetch.url_join import interleave_hosts, urls_to_fetch
from pairmill.pipeline.image.isolated import DECODE_TIMEOUT_S, IsolatedProcessor
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.rules import SourceRules
from pairmill.pipeline.rules.url import refused_redirect
from pairmill.schemas.job.pictures import used_measures
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.status import Status

_log = logging.getLogger(__name__)

_MAX_BUFFERED_BYTES = 64 << 20
"""No new request starts while this many bytes are arriving or waiting for a decoding thread: a second of work."""

_MAX_GROWN_BYTES = 512 << 20
"""Requests already in flight can raise the total to this many bytes, and a little more: see `ByteBudget`."""

HANG_CHECK_S = 10.0

_MAX_TASKS = 8192
"""Maximum number of URLs of one shard that have a task at the same time; bounds memory for very long shards."""


class Downloader:
    """Fetches and decodes the rows of a shard that are still `ok`. Several threads may call it at the same time."""

    def __init__(
        self,
        job: BuildJob,
        sha256_column: str | None = None,
        isolate_decoder: bool = False,
        on_hang: Callable[[], None] | None = None,
    ) -> None:
        """`isolate_decoder`: decode in a child process. `on_hang`: called if a decoder hangs."""
        self._job = job
        self._sha256_column = sha256_column
        self._on_hang = on_hang
        measures = used_measures(job.picture_scores.values())
        processor = IsolatedProcessor if isolate_decoder else ImageProcessor
        self._processor: IsolatedProcessor | ImageProcessor = processor(job.images, measures)
        self._start_lock = threading.Lock()
        self._engine: _Engine | None = None
        self._closed = False

    def __call__(self, table: pa.Table, progress: ShardProgress | None = None) -> pa.Table:
        """The in-flight table with its URLs downloaded: see `with_outcomes`. Raises LocalFault."""
        expected_sha256 = urls_to_fetch(table, self._sha256_column)
        outcomes = self._start().run(expected_sha256, progress or unwatched()) if expected_sha256 else {}
        return with_outcomes(table, outcomes, self._sha256_column, self._job.picture_scores)

    def in_flight(self) -> int:
        """Number of running requests. Any thread may read it."""
        engine = self._engine
        return engine.in_flight if engine else 0

    def close(self) -> None:
        """Cancel running downloads, end the threads and close the connections. Call this after the last shard."""
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
        self._md5 = job.computes_md5
        self._on_hang = on_hang
        self._redirect_rule = partial(refused_redirect, rules=SourceRules.of(job))
        self._processor = processor
        self._decoders = ThreadPoolExecutor(job.run.decode_threads, thread_name_prefix="decode")
        self._budget = ByteBudget(_MAX_BUFFERED_BYTES, _MAX_GROWN_BYTES)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started: Future[None] = Future()
        # A daemon thread: an interpreter that exits without close() must not wait for slow servers.
        self._thread = threading.Thread(target=self._serve, args=(started,), name="fetch", daemon=True)
        self._thread.start()
        started.result()

    @property
    def in_flight(self) -> int:
        return self._fetcher.in_flight

    def run(self, expected_sha256: Mapping[str, frozenset[str]], progress: ShardProgress) -> dict[str, FetchOutcome]:
        """Download URLs, each with its expected SHA-256 digests (empty: any bytes will do). Blocks the caller."""
        progress.expect(len(expected_sha256))
        shard = asyncio.run_coroutine_threadsafe(self._download_all(expected_sha256, progress), self._loop)
        try:
            return shard.result()
        except BaseException:  # Ctrl-C in this thread must end the requests in the loop's thread
            shard.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._decoders.shutdown(wait=True, cancel_futures=True)

    def _serve(self, started: "Future[None]") -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_stopped(started))  # leaving the `with` block cancels the running shards

    async def _until_stopped(self, started: "Future[None]") -> None:
        try:
            async with Fetcher(self._config, self._budget, self._redirect_rule) as self._fetcher:
                started.set_result(None)
                if self._on_hang is not None and isinstance(self._processor, ImageProcessor):
                    # without this reference, the task could be garbage-collected
                    self._watching = asyncio.create_task(self._watch_decoders(self._processor, self._on_hang))
                await self._stop.wait()
                await _cancel_others()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _watch_decoders(self, processor: ImageProcessor, on_hang: Callable[[], None]) -> None:
        """Call `on_hang` if a decoding thread hangs in C code. Only exiting the process stops such a thread; its shards
        are then retried in isolation."""
        while True:
            await asyncio.sleep(HANG_CHECK_S)
            since = processor.oldest_start  # the decoders stalled too if the loop did
            if since is not None and time.monotonic() - max(since, self._fetcher.last_stall_end) > DECODE_TIMEOUT_S:
                on_hang()

    async def _download_all(
        self, expected_sha256: Mapping[str, frozenset[str]], progress: ShardProgress
    ) -> dict[str, FetchOutcome]:
        outcomes: dict[str, FetchOutcome] = {}
        tasks = asyncio.Semaphore(_MAX_TASKS)

        async def download_one(url: str) -> None:
            try:
                outcomes[url] = outcome = await self._download_safely(url, expected_sha256[url])
                progress.done(good_items=outcome.status is Status.OK, num_bytes=outcome.original_bytes or 0)
            finally:
                tasks.release()

        try:
            async with asyncio.TaskGroup() as group:
                for url in interleave_hosts(expected_sha256):
                    await tasks.acquire()
                    group.create_task(download_one(url))
        except BaseExceptionGroup as faults:  # hundreds of requests fail for the same reason: one error is enough
            raise faults.exceptions[0] from None
        return outcomes

    async def _download_safely(self, url: str, expected_sha256: frozenset[str]) -> FetchOutcome:
        """Download one URL. An unexpected error loses only the rows of this URL, unless this machine is at fault."""
        try:
            return await self._download(url, expected_sha256)
        except Exception as error:
            if (fault := local_fault(error)) is not None:
                raise fault from error
            _log.exception("unexpected error for %s", url)
            return FetchOutcome(Status.ROW_ERROR, describe(error))

    async def _download(self, url: str, expected_sha256: frozenset[str]) -> FetchOutcome:
        fetched = await self._fetcher.fetch(url)
        if fetched.body is None:
            return fetched
        try:
            return await self._loop.run_in_executor(
                self._decoders, self._decode, fetched, fetched.body, expected_sha256
            )
        finally:
            self._budget.release_decoded(len(fetched.body))

    def _decode(self, fetched: FetchOutcome, body: bytes, expected_sha256: frozenset[str]) -> FetchOutcome:
        """Compute the checksums, then decode the picture unless every row expects other bytes. For decoding threads."""
        outcome = fetched.with_digests_of(body, self._md5)
        if expected_sha256 and outcome.sha256 not in expected_sha256:
            return outcome.refused(Status.CONTENT_CHANGED)
        return outcome.with_image(self._processor.process(body))


async def _cancel_others() -> None:
    """Cancel all other tasks of this loop and wait for them, while the Fetcher is still open."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
