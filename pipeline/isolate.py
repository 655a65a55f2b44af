"""Decoding in a child process, for shards that killed their worker: the picture that does it costs one row."""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from pipeline.images import ImageProcessor, Picture
from schemas.jobs import ImagesConfig
from schemas.status import Status

DECODE_TIMEOUT_S = 120.0
"""No picture within `images.max_pixels` takes this long; a decoder that does is taken for hung."""

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
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, initializer=_start, initargs=(self._config,))
                self._pool.submit(int).result()  # its start is not held against the picture
            try:
                return self._pool.submit(_process, body).result(self._timeout_s)
            except BrokenProcessPool:
                self._kill()
                return Picture(Status.DECODER_CRASHED, "the decoding process died")
            except TimeoutError:
                self._kill()
                return Picture(Status.DECODER_CRASHED, f"no picture within {self._timeout_s:g} s")

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


def _start(config: ImagesConfig) -> None:
    global _processor
    _processor = ImageProcessor(config)


def _process(body: bytes) -> Picture:
    assert _processor is not None
    return _processor.process(body)
