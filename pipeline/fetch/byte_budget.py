"""Limits how many bytes of response bodies are in memory. For one event loop, not thread-safe."""

import asyncio

from pairmill.pipeline.fetch.deadline import Deadline


class ByteBudget:
    """Bytes that are arriving or waiting to be decoded: new requests wait while there are `limit_bytes` or more.

    Requests already in progress may use up to twice the limit. Above that, only one of them proceeds at a time, so one
    can always finish, and the total exceeds twice the limit by at most one body.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._reserved = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._sole_reservation: Reservation | None = None
        self._changed = asyncio.Event()
        self._waiting = 0

    @property
    def is_full(self) -> bool:
        """True while `wait_for_room` would wait."""
        return not self._has_room.is_set()

    async def wait_for_room(self) -> None:
        """Return as soon as fewer bytes than the limit are reserved."""
        await self._has_room.wait()

    def reserve(self, num_bytes: int) -> None:
        """Add bytes. Never waits."""
        self._reserved += num_bytes
        if self._reserved >= self._limit:
            self._has_room.clear()

    def release(self, num_bytes: int) -> None:
        """Subtract bytes."""
        self._reserved -= num_bytes
        if self._reserved < self._limit:
            self._has_room.set()
        if self._waiting and self._reserved < 2 * self._limit:
            self._wake()

    async def wait_to_grow(self, reservation: "Reservation") -> None:
        """Return once less than twice the limit is reserved, or this reservation is the only one growing above that."""
        while self._reserved >= 2 * self._limit and self._sole_reservation not in (None, reservation):
            self._waiting += 1
            try:
                await self._changed.wait()
            finally:
                self._waiting -= 1
        if self._reserved >= 2 * self._limit:
            self._sole_reservation = reservation

    def stop_growing(self, reservation: "Reservation") -> None:
        """Let another reservation grow above twice the limit."""
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

    async def resize(self, num_bytes: int) -> None:
        """Change the reservation to `num_bytes`, before these bytes arrive."""
        if num_bytes > self._num_bytes:
            if self._budget.is_full:
                self._deadline.pause()
                await self._budget.wait_to_grow(self)
                self._deadline.resume()
            self._budget.reserve(num_bytes - self._num_bytes)
        else:
            self._budget.release(self._num_bytes - num_bytes)
        self._num_bytes = num_bytes

    def release(self) -> None:
        """Release all bytes."""
        self.hand_over()
        self._budget.release(self._num_bytes)
        self._num_bytes = 0

    def hand_over(self) -> None:
        """Stop growing. The bytes stay reserved, and the receiver of the body releases them."""
        self._budget.stop_growing(self)
