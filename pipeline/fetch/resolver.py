"""Looks up names for the HTTP client, using c-ares, which reads /etc/hosts and resolv.conf."""

import asyncio
import socket
from typing import Any

import aiodns
import pycares

from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.dns import DnsCache, NoSuchHost
from pairmill.pipeline.fetch.stall_monitor import StallMonitor
from pairmill.schemas.job.fetch import FetchConfig

_TRIES = 3  # regardless of the job's retries: UDP loses packets, especially if many are sent at once
_TIMEOUT_S = 5.0  # for all tries of one look-up: the default (5 s, twice per server) would take half a URL's time
_NAMES_ONLY = {"flags": pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_EDNS}  # c-ares sets the latter by default
"""A URL from the web means no host in the machine's own domains (`search` in resolv.conf): if one of these answers for
all names, dead links, and with the `ndots:5` of Kubernetes all links, would lead to the wrong host."""
_NAMES_FIRST = {"ndots": 1}
"""A job that allows a private network can mean its hosts, but only if there is no such name on the web."""
_NO_SUCH_NAME = frozenset({aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA, aiodns.error.ARES_EBADNAME})


class GuardedResolver:
    """Caches look-ups and returns only allowed addresses."""

    def __init__(self, guard: AddressGuard, config: FetchConfig, stalls: StallMonitor) -> None:
        self._stalls = stalls
        self._timeout_s = min(_TIMEOUT_S, config.timeout_s / 2)
        first_s = self._timeout_s / (2**_TRIES - 1)  # each try waits twice as long as the one before
        domains: dict[str, Any] = _NAMES_FIRST if config.allow_networks else _NAMES_ONLY
        self._dns = aiodns.DNSResolver(config.nameservers or None, timeout=first_s, tries=_TRIES, **domains)
        self._cache = DnsCache(self._look_up, guard)

    async def resolve(self, name: str) -> list[str]:
        """The addresses to connect to. Raises OSError (AddressRefused, NoSuchHost, ...)."""
        return await self._cache.resolve(name)

    async def close(self) -> None:
        """Cancel the running look-ups and close their sockets."""
        await self._cache.close()
        await self._dns.close()

    async def _look_up(self, name: str) -> list[str]:
        return await self._stalls.repeat_if_stalled(lambda: self._ask(name), OSError)

    async def _ask(self, name: str) -> list[str]:
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._dns.getaddrinfo(name, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except TimeoutError as error:
            raise OSError(f"no answer for {name} within {self._timeout_s:g} s") from error
        except UnicodeError as error:
            raise NoSuchHost(f"{name} is not a host name") from error
        except aiodns.error.DNSError as error:
            # c-ares reports "no server answers" if it could not open a socket: opening one here raises the real error.
            socket.socket().close()
            kind = NoSuchHost if error.args[0] in _NO_SUCH_NAME else OSError
            raise kind(f"{name}: {error.args[-1]}") from error
        return [node.addr[0].decode() for node in found.nodes]
