"""Decoding in a child process, for shards that killed their worker: the picture that does it costs one row."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from pipeline.faults import LocalFault
from pipeline.images import ImageProcessor, Picture
from schemas.jobs import ImagesConfig
from schemas.status import Status

DECODE_TIMEOUT_S = 120.0
"""No picture within `images.max_pixels` takes this long; a decoder that does is taken for hung."""

_PARENT_CHECK_S = 1.0

_processor: ImageProcessor | None = None


class IsolatedProcessor:
    """Stands in for ImageProcessor, several times slower: one picture at a time, in a process that may die."""

    def __init__(self, config: ImagesConfig, timeout_s: float = DECODE_TIMEOUT_S) -> None:
        self._config = config
        self._timeout_s = timeout_s
        self._one_at_a_time = threading.Lock()  # a death would take a neighbor's picture along
        self._pool: ProcessPoolExecutor | None = None

    def process(self, body: bytes) -> Picture:
        """As ImageProcessor.process; `decoder_crashed` where the child died or hung on the picture."""
        with self._one_at_a_time:
            pool = self._pool = self._pool or self._open()
            try:
                return pool.submit(_process, body).result(self._timeout_s)
            except BrokenProcessPool:
                self._kill()
                return Picture(Status.DECODER_CRASHED, "the decoding process died")
            except TimeoutError:
                self._kill()
                return Picture(Status.DECODER_CRASHED, f"no picture within {self._timeout_s:g} s")

    def _open(self) -> ProcessPoolExecutor:
        """Start a child; its start is not held against the picture. Raises LocalFault where it cannot."""
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, initializer=_start, initargs=(self._config, os.getpid()))
        try:
            pool.submit(int).result()
        except (OSError, BrokenProcessPool) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise LocalFault(f"no process can be started to decode in: {error}") from error
        return pool

    def close(self) -> None:
        """End the child."""
        with self._one_at_a_time:
            self._kill()

    def _kill(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in (pool._processes or {}).values():
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


def _start(config: ImagesConfig, parent: int) -> None:
    global _processor
    _processor = ImageProcessor(config)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker that is killed cannot close its child: the child looks after that itself."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def _process(body: bytes) -> Picture:
    assert _processor is not None
    return _processor.process(body)
