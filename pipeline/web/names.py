"""Host names become addresses: one look-up per name for all who ask, failures remembered, private addresses left out.

Says nothing about how a look-up is made: `pipeline.fetch` passes that in.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from pipeline.web.addresses import AddressGuard

_GOOD_S = 60.0
_NO_SUCH_NAME_S = 60.0  # RFC 2308 section 5 allows up to three hours
_NO_ANSWER_S = 15.0  # name servers that do not answer may be back soon (RFC 9520 section 3.2: 1 s to 5 min)
_MAX_NAMES = 20_000


class AddressRefused(OSError):
    """The address that was about to be connected to is not a public one. Nothing was sent to it."""


class NoSuchHost(OSError):
    """The name servers say that there is no such name, or no address for it."""


class HostNames:
    """A cache in front of `look_up(name) -> addresses`, which raises OSError for a failure."""

    def __init__(self, look_up: Callable[[str], Awaitable[Sequence[str]]], guard: AddressGuard) -> None:
        self._look_up = look_up
        self._guard = guard
        self._known: OrderedDict[str, tuple[float, list[str] | OSError]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[list[str]]] = {}

    async def addresses(self, name: str) -> list[str]:
        """The addresses of a name that may be connected to. Raises AddressRefused, NoSuchHost or another OSError."""
        found = self._remembered(name)
        if found is None:
            task = self._asking.get(name)
            if task is None:
                task = self._asking[name] = asyncio.create_task(self._ask(name))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())  # all may have given up
            found = await asyncio.shield(task)  # one who gives up must not take the answer from the others
        return found

    async def close(self) -> None:
        """Cancel the look-ups under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _remembered(self, name: str) -> list[str] | None:
        until, found = self._known.get(name, (0.0, None))
        if until <= asyncio.get_running_loop().time():
            return None
        if isinstance(found, OSError):
            raise type(found)(*found.args)  # a new one: a raised exception collects tracebacks and frames
        return found

    async def _ask(self, name: str) -> list[str]:
        try:
            addresses = list(await self._look_up(name))
            if not addresses:
                raise NoSuchHost(f"{name} has no address")
            refusals = {address: self._guard.refusal(address) for address in addresses}
            allowed = [address for address in addresses if refusals[address] is None]
            if not allowed:
                raise AddressRefused(next(iter(refusals.values())))
        except OSError as error:
            lasting = isinstance(error, AddressRefused | NoSuchHost)
            self._remember(name, _NO_SUCH_NAME_S if lasting else _NO_ANSWER_S, error)
            raise
        else:
            self._remember(name, _GOOD_S, allowed)
            return allowed
        finally:
            del self._asking[name]

    def _remember(self, name: str, seconds: float, found: list[str] | OSError) -> None:
        self._known[name] = asyncio.get_running_loop().time() + seconds, found
        self._known.move_to_end(name)
        if len(self._known) > _MAX_NAMES:
            self._known.popitem(last=False)
