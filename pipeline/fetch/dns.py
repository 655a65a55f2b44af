"""Host names become addresses: one look-up per name for all who ask, failures remembered, private addresses left out.

Says nothing about how a look-up is made: `pairmill.pipeline.fetch.fetcher` passes that in.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pairmill.pipeline.common.faults import LOCAL_ERRNOS
from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.ttl_cache import Remembered

_GOOD_S = 60.0
_NO_SUCH_NAME_S = 60.0  # RFC 2308 section 5 allows up to three hours
_NO_ANSWER_S = 15.0  # name servers that do not answer may be back soon (RFC 9520 section 3.2: 1 s to 5 min)
_MAX_NAMES = 20_000
_LOOK_UPS_AT_ONCE = 128  # two packets each; small resolvers drop what is more


class AddressRefused(OSError):
    """The address that was about to be connected to is not a public one. Nothing was sent to it."""


class NoSuchHost(OSError):
    """The name servers say that there is no such name, or no address for it."""


class HostNames:
    """A cache in front of `look_up(name) -> addresses`, which raises OSError for a failure."""

    def __init__(self, look_up: Callable[[str], Awaitable[Sequence[str]]], guard: AddressGuard) -> None:
        self._look_up = look_up
        self._guard = guard
        self._turns = asyncio.Semaphore(_LOOK_UPS_AT_ONCE)
        self._found: Remembered[list[str] | OSError] = Remembered(self._ask, _keep_s, _MAX_NAMES)

    async def addresses(self, name: str) -> list[str]:
        """The addresses of a name that may be connected to. Raises AddressRefused, NoSuchHost or another OSError."""
        found = await self._found.get(name)
        if isinstance(found, OSError):
            raise type(found)(*found.args)  # a new one: a raised exception collects tracebacks and frames
        return found

    async def close(self) -> None:
        """Cancel the look-ups under way."""
        await self._found.close()

    async def _ask(self, name: str) -> list[str] | OSError:
        try:
            async with self._turns:
                addresses = list(await self._look_up(name))
        except OSError as error:
            return error
        if not addresses:
            return NoSuchHost(f"{name} has no address")
        refusals = {address: self._guard.refusal(address) for address in addresses}
        allowed = [address for address in addresses if refusals[address] is None]
        return allowed or AddressRefused(next(iter(refusals.values())))


def _keep_s(found: list[str] | OSError) -> float:
    if not isinstance(found, OSError):
        return _GOOD_S
    if found.errno in LOCAL_ERRNOS:
        return 0.0  # this machine's fault, which says nothing of the name
    return _NO_SUCH_NAME_S if isinstance(found, AddressRefused | NoSuchHost) else _NO_ANSWER_S
