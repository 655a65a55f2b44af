"""Caches answers that cost a request: the addresses of a name, or the robots.txt of a host."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class TtlCache(Generic[V]):
    """Caches the results of `load(key)`, which must not raise: failures are values too, with their own lifetime.

    `ttl_s`: seconds for which a value is valid. If the total `size` exceeds `max_size`, the oldest values are dropped.
    """

    def __init__(
        self,
        load: Callable[[str], Awaitable[V]],
        ttl_s: Callable[[V], float],
        max_size: int,
        size: Callable[[V], int] = lambda _: 1,
    ) -> None:
        self._load = load
        self._ttl_s = ttl_s
        self._max_size = max_size
        self._size_of = size
        self._size = 0
        self._entries: OrderedDict[str, tuple[float, V]] = OrderedDict()  # key -> (expires at, value)
        self._loading: dict[str, asyncio.Task[V]] = {}

    async def get(self, key: str) -> V:
        """The cached value, or a new one; concurrent callers share one load."""
        expires_at, value = self._entries.get(key, (0.0, None))
        if value is not None and expires_at > asyncio.get_running_loop().time():
            return value
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load_and_store(key))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # maybe nobody is waiting
        return await asyncio.shield(task)  # a caller that gives up must not cancel the load for the others

    async def close(self) -> None:
        """Cancel the running loads."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load_and_store(self, key: str) -> V:
        try:
            value = await self._load(key)
        finally:
            del self._loading[key]
        self._remove(key)
        self._entries[key] = asyncio.get_running_loop().time() + self._ttl_s(value), value
        self._size += self._size_of(value)
        while self._size > self._max_size and len(self._entries) > 1:
            self._remove(next(iter(self._entries)))
        return value

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= self._size_of(entry[1])
