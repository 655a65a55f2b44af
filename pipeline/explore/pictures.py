"""Makes small copies of pictures. Each picture is read only once for a page, no matter how many requests ask for it."""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.reader.thumbnails import RowRef, Thumbnail, Thumbnails

SMALL, LARGE = 320, 1_280
"""Maximum width and height in pixels: on a card, and on the page of a pair."""
MAX_BYTES = 128 << 20
"""Maximum size of all cached copies."""


@dataclass(frozen=True)
class PictureKey:
    """One picture in one size."""

    ref: RowRef
    side: int


class Pictures:
    """The pictures of a snapshot. Thread-safe. Close it after use."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._makers = {side: Thumbnails(snapshot, side) for side in (SMALL, LARGE)}
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="pictures")
        self._made: OrderedDict[PictureKey, Future[Thumbnail]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.read = 0
        """Number of pictures read so far."""

    def close(self) -> None:
        """Close files and stop threads."""
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            keys = list(self._made)
        self._give_up(keys)
        for maker in self._makers.values():
            maker.close()

    def prefetch(self, refs: Iterable[RowRef], side: int = SMALL) -> None:
        """Start to read the pictures of a page, shard by shard."""
        missing = []
        with self._lock:
            for ref in refs:
                key = PictureKey(ref, side)
                if key not in self._made:
                    self._made[key] = Future()
                    missing.append(key)
        by_shard: dict[int, list[PictureKey]] = defaultdict(list)
        for key in missing:
            by_shard[key.ref.position].append(key)
        for keys in by_shard.values():
            try:
                self._pool.submit(self._make, keys)
            except RuntimeError:  # closed in the meantime
                self._give_up(keys)

    def get(self, ref: RowRef, side: int) -> Thumbnail:
        """A picture as a small JPEG, or the reason why there is none. Waits until the picture is read."""
        self.prefetch([ref], side)
        key = PictureKey(ref, side)
        with self._lock:
            future = self._made.get(key)
            if future is not None:
                self._made.move_to_end(key)
        return self.get(ref, side) if future is None else future.result()

    def _make(self, keys: list[PictureKey]) -> None:
        try:
            made = self._makers[keys[0].side].of(key.ref for key in keys)
        except BaseException as error:
            self._fail(keys, error)
            raise
        with self._lock:
            self.read += len(keys)
            for key in keys:
                thumbnail = made[key.ref]
                self._made[key].set_result(thumbnail)
                self._bytes += len(thumbnail.jpeg or b"")
            self._shrink()

    def _give_up(self, keys: Iterable[PictureKey]) -> None:
        """Answer the requests for pictures that will not be made."""
        with self._lock:
            for key in keys:
                if not self._made[key].done():
                    self._made[key].set_result(Thumbnail(None, problem="the dataset was reloaded"))

    def _fail(self, keys: list[PictureKey], error: BaseException) -> None:
        """Pass the error to the waiting requests; the next request tries again."""
        with self._lock:
            for key in keys:
                self._made.pop(key).set_exception(error)

    def _shrink(self) -> None:
        for key in list(self._made):
            if self._bytes <= MAX_BYTES:
                return
            if self._made[key].done():
                self._bytes -= len(self._made.pop(key).result().jpeg or b"")
