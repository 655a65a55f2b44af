"""Answers that cost a request, asked for once and kept for a while: addresses of names, robots.txt of hosts."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Remembered(Generic[V]):
    """A cache in front of `ask(key)`, which raises nothing: failures are values too, with a time of their own.

    `keep_s` says how long a value is good for. The oldest go when the `size` of all is above `max_size`.
    """

    def __init__(
        self,
        ask: Callable[[str], Awaitable[V]],
        keep_s: Callable[[V], float],
        max_size: int,
        size: Callable[[V], int] = lambda _: 1,
    ) -> None:
        self._ask = ask
        self._keep_s = keep_s
        self._max_size = max_size
        self._size_of = size
        self._size = 0
        self._known: OrderedDict[str, tuple[float, V]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[V]] = {}

    async def get(self, key: str) -> V:
        """What is known, or what is asked now; all who ask meanwhile get the same answer."""
        until, value = self._known.get(key, (0.0, None))
        if value is not None and until > asyncio.get_running_loop().time():
            return value
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask_and_keep(key))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # all may have given up
        return await asyncio.shield(task)  # one who gives up must not take the answer from the others

    async def close(self) -> None:
        """Cancel the questions under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_and_keep(self, key: str) -> V:
        try:
            value = await self._ask(key)
        finally:
            del self._asking[key]
        self._forget(key)
        self._known[key] = asyncio.get_running_loop().time() + self._keep_s(value), value
        self._size += self._size_of(value)
        while self._size > self._max_size and len(self._known) > 1:
            self._forget(next(iter(self._known)))
        return value

    def _forget(self, key: str) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._size -= self._size_of(known[1])
