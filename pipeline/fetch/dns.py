"""Turns host names into addresses: makes one look-up per name for all callers, caches failures, and refuses
private addresses.

`resolver.py` passes in the function that makes a look-up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack

from pairmill.pipeline.common.faults import LOCAL_ERRNOS
from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.ttl_cache import TtlCache

_TTL_S = 60.0
_NO_SUCH_NAME_TTL_S = 60.0  # RFC 2308 section 5 allows up to three hours
_NO_ANSWER_TTL_S = 15.0  # name servers that do not answer may soon be back (RFC 9520 section 3.2: 1 s to 5 min)
_MAX_NAMES = 20_000
_MAX_CONCURRENT_LOOKUPS = 128  # each look-up sends two packets, and small resolvers drop packets beyond that
_SLOT_S = 1.0
"""A look-up no longer counts as running after this time, so that silent name servers do not delay other names."""


class AddressRefused(OSError):
    """The address to connect to is not public. Nothing was sent to it."""


class NoSuchHost(OSError):
    """According to the name servers, the name does not exist or has no address."""


class DnsCache:
    """Caches the results of `look_up(name) -> addresses`, which raises OSError on failure."""

    def __init__(self, look_up: Callable[[str], Awaitable[Sequence[str]]], guard: AddressGuard) -> None:
        self._look_up = look_up
        self._guard = guard
        self._concurrency = asyncio.Semaphore(_MAX_CONCURRENT_LOOKUPS)
        self._cache: TtlCache[list[str] | OSError] = TtlCache(self._resolve, _ttl_s, _MAX_NAMES)

    async def resolve(self, name: str) -> list[str]:
        """The allowed addresses of a name. Raises AddressRefused, NoSuchHost or another OSError."""
        found = await self._cache.get(name)
        if isinstance(found, OSError):
            raise type(found)(*found.args)  # a new error: a raised one collects tracebacks and frames
        return found

    async def close(self) -> None:
        """Cancel the look-ups that are running."""
        await self._cache.close()

    async def _resolve(self, name: str) -> list[str] | OSError:
        try:
            with ExitStack() as slot:
                await self._concurrency.acquire()
                slot.callback(self._concurrency.release)
                slot.callback(asyncio.get_running_loop().call_later(_SLOT_S, slot.close).cancel)
                addresses = list(await self._look_up(name))
        except OSError as error:
            return error
        if not addresses:
            return NoSuchHost(f"{name} has no address")
        refusals = {address: self._guard.refusal(address) for address in addresses}
        allowed = [address for address in addresses if refusals[address] is None]
        return allowed or AddressRefused(next(iter(refusals.values())))


def _ttl_s(found: list[str] | OSError) -> float:
    if not isinstance(found, OSError):
        return _TTL_S
    if found.errno in LOCAL_ERRNOS:
        return 0.0  # a fault of this machine says nothing about the name
    return _NO_SUCH_NAME_TTL_S if isinstance(found, AddressRefused | NoSuchHost) else _NO_ANSWER_TTL_S
