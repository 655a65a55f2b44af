"""A timeout whose clock can be paused: waiting for our own limits must not use up a URL's time."""

import asyncio
from types import TracebackType


class Deadline:
    """Like `asyncio.timeout`, except between `pause()` and `resume()`. For one event loop, not thread-safe."""

    def __init__(self, timeout_s: float) -> None:
        self._remaining_s = timeout_s
        self._resumed_at: float | None = None
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> "Deadline":
        await self._timeout.__aenter__()
        self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)  # turns the cancellation into TimeoutError

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, if the clock is not paused again."""
        running_s = 0.0 if self._resumed_at is None else self._loop.time() - self._resumed_at
        return self._remaining_s - running_s

    @property
    def expired(self) -> bool:
        """True once the time was up and the block was interrupted for it."""
        return self._timeout.expired()

    def pause(self) -> None:
        """Stop the clock."""
        self._remaining_s, self._resumed_at = self.remaining_s, None
        self._timeout.reschedule(None)

    def resume(self) -> None:
        """Start the clock again."""
        self._resumed_at = self._loop.time()
        self._timeout.reschedule(self._resumed_at + max(self._remaining_s, 0.0))
