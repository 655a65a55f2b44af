"""Limits how many bytes of response bodies are in memory. For one event loop, not thread-safe."""

import asyncio
from collections import deque

from pairmill.pipeline.fetch.deadline import Deadline


class ByteBudget:
    """Bytes that are arriving or waiting to be decoded: new requests wait while there are `limit_bytes` or more.

    Requests already in progress may use up to `growth_bytes`. Above that, only one of them proceeds at a time, so one
    can always finish, and the total exceeds this limit by at most one body. It should be far higher, because the one
    that proceeds may be from a slow server.
    """

    def __init__(self, limit_bytes: int, growth_bytes: int | None = None) -> None:
        """`growth_bytes`: by default, twice the limit."""
        self.limit_bytes = limit_bytes
        self._growth_bytes = growth_bytes or 2 * limit_bytes
        self._reserved = 0
        self._starts: deque[tuple[asyncio.Future[None], int]] = deque()
        """The requests that wait to start, and what they will reserve."""
        self._sole_reservation: Reservation | None = None
        self._changed = asyncio.Event()
        self._waiting = 0

    @property
    def is_full(self) -> bool:
        """True while `reserve_to_start` would wait."""
        return self._reserved >= self.limit_bytes

    async def reserve_to_start(self, num_bytes: int) -> None:
        """Add bytes as soon as fewer than the limit are reserved, in the order of the calls.

        If all requests started at once when there is room again, they would need hundreds of new connections, although
        most of those to the same hosts would soon be free.
        """
        if not self.is_full:
            self.reserve(num_bytes)
            return
        turn = asyncio.get_running_loop().create_future()
        self._starts.append((turn, num_bytes))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn had come already
                self.release(num_bytes)
            raise

    def reserve(self, num_bytes: int) -> None:
        """Add bytes. Never waits."""
        self._reserved += num_bytes

    def release(self, num_bytes: int) -> None:
        """Subtract bytes."""
        self._reserved -= num_bytes
        while self._starts and not self.is_full:
            turn, to_reserve = self._starts.popleft()
            if not turn.cancelled():
                self.reserve(to_reserve)
                turn.set_result(None)
        if self._waiting and self._reserved < self._growth_bytes:
            self._wake()

    async def wait_to_grow(self, reservation: "Reservation") -> None:
        """Return once fewer than `growth_bytes` are reserved, or only this reservation grows above that."""
        while self._reserved >= self._growth_bytes and self._sole_reservation not in (None, reservation):
            self._waiting += 1
            try:
                await self._changed.wait()
            finally:
                self._waiting -= 1
        if self._reserved >= self._growth_bytes:
            self._sole_reservation = reservation

    def stop_growing(self, reservation: "Reservation") -> None:
        """Let another reservation grow above `growth_bytes`."""
        if self._sole_reservation is reservation:
            self._sole_reservation = None
            self._wake()

    def _wake(self) -> None:
        self._changed.set()  # wakes everyone who is waiting now
        self._changed = asyncio.Event()


class Reservation:
    """The bytes of one download in a ByteBudget. Pauses the download's deadline while it waits for the budget."""

    def __init__(self, budget: ByteBudget, deadline: Deadline) -> None:
        self._budget = budget
        self._deadline = deadline
        self._num_bytes = 0

    async def start(self, num_bytes: int) -> None:
        """Reserve the expected bytes of a request, which may then start."""
        await self._budget.reserve_to_start(num_bytes)
        self._num_bytes = num_bytes

    async def resize(self, num_bytes: int) -> None:
        """Change the reservation to `num_bytes`, before these bytes arrive."""
        if num_bytes > self._num_bytes:
            if self._budget.is_full:
                with self._deadline.paused():
                    await self._budget.wait_to_grow(self)
            self._budget.reserve(num_bytes - self._num_bytes)
        else:
            self._budget.release(self._num_bytes - num_bytes)
        if not num_bytes:  # what follows may wait for others, which must be able to grow
            self._budget.stop_growing(self)
        self._num_bytes = num_bytes

    def release(self) -> None:
        """Release all bytes."""
        self.hand_over()
        self._budget.release(self._num_bytes)
        self._num_bytes = 0

    def hand_over(self) -> None:
        """Stop growing. The bytes stay reserved, and the receiver of the body releases them."""
        self._budget.stop_growing(self)
