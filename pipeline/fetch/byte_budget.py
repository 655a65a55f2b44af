"""Limits how many bytes of response bodies are in memory. For one event loop, not thread-safe."""

import asyncio
from collections import deque

from pairmill.pipeline.fetch.deadline import Deadline

_TURN_S, _TURN_BYTES = 0.25, 4 << 10
"""A body that grows by fewer bytes in this time loses its turn to the next one."""

_MAX_UNFINISHED_SHARE = 1 / 8
"""Bodies that lost their turn can exceed the limit for growth by this share of it."""


class ByteBudget:
    """Bytes that are arriving or waiting to be decoded: new requests wait while there are `limit_bytes` or more.

    Requests already in progress may use up to `growth_bytes`. Above that, only one of them proceeds at a time, so one
    can always finish, and the next one waits until that body is decoded. A body that hardly grows loses its turn and
    then waits behind the others, because otherwise, slow servers would delay everyone. The total exceeds `growth_bytes`
    by at most an eighth, from such turns, and one body: once the eighth is used up, a body keeps its turn to the end.
    """

    def __init__(self, limit_bytes: int, growth_bytes: int | None = None) -> None:
        """`growth_bytes`: by default, twice the limit."""
        self.limit_bytes = limit_bytes
        self._growth_bytes = growth_bytes or 2 * limit_bytes
        self._reserved = 0
        self._decoding = 0
        """Bytes of whole bodies, which a decoder will release."""
        self._starts: deque[tuple[asyncio.Future[None], int]] = deque()
        """The requests that wait to start, and what they will reserve."""
        self._growing: Reservation | None = None
        """Whose turn it is to grow above `growth_bytes`."""
        self._turns: deque[tuple[asyncio.Future[None], Reservation]] = deque()
        """The bodies that wait to grow."""
        self._review: asyncio.TimerHandle | None = None

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
            if _grant(turn):
                self.reserve(to_reserve)
        if self._reserved < self._growth_bytes:
            while self._turns:
                _grant(self._turns.popleft()[0])

    async def wait_to_grow(self, reservation: "Reservation") -> None:
        """Return once fewer than `growth_bytes` are reserved, or it is this reservation's turn to grow above that."""
        while self._reserved >= self._growth_bytes and self._growing is not reservation:
            if self._growing is None and not self._decoding:
                self._give_turn(reservation)
            else:
                turn = asyncio.get_running_loop().create_future()
                self._turns.append((turn, reservation))
                await turn

    def hand_over(self, reservation: "Reservation") -> None:
        """Leave the bytes of a whole body to its decoder, which calls `release_decoded`."""
        self._decoding += reservation.num_bytes
        self.stop_growing(reservation)

    def release_decoded(self, num_bytes: int) -> None:
        """Subtract the bytes of a whole body."""
        self._decoding -= num_bytes
        self.release(num_bytes)
        if self._growing is None:
            self._pass_turn()

    def stop_growing(self, reservation: "Reservation") -> None:
        """Let another reservation grow above `growth_bytes`."""
        if self._growing is reservation:
            self._pass_turn()

    def _give_turn(self, reservation: "Reservation") -> None:
        self._growing = reservation
        self._review = asyncio.get_running_loop().call_later(
            _TURN_S, self._review_turn, reservation, reservation.num_bytes
        )

    def _pass_turn(self) -> None:
        """Give the turn to the reservation that has waited longest, unless a decoder is about to make room."""
        self._growing = None
        if self._review is not None:
            self._review.cancel()
        while self._turns and self._growing is None and not self._decoding:
            turn, reservation = self._turns.popleft()
            if _grant(turn):
                self._give_turn(reservation)

    def _review_turn(self, reservation: "Reservation", num_bytes_before: int) -> None:
        is_slow = reservation.num_bytes - num_bytes_before < _TURN_BYTES
        if is_slow and self._turns and self._reserved < (1 + _MAX_UNFINISHED_SHARE) * self._growth_bytes:
            self._pass_turn()
        else:
            self._give_turn(reservation)


def _grant(turn: "asyncio.Future[None]") -> bool:
    """End the wait for a turn. False if the waiting task was cancelled."""
    if turn.cancelled():
        return False
    turn.set_result(None)
    return True


class Reservation:
    """The bytes of one download in a ByteBudget. Pauses the download's deadline while it waits for the budget."""

    def __init__(self, budget: ByteBudget, deadline: Deadline) -> None:
        self._budget = budget
        self._deadline = deadline
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that are reserved now."""
        return self._num_bytes

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
        self._budget.stop_growing(self)
        self._budget.release(self._num_bytes)
        self._num_bytes = 0

    def hand_over(self) -> None:
        """Stop growing. The bytes stay reserved, and the receiver of the body calls `release_decoded`."""
        self._budget.hand_over(self)
