"""THE place where a URL becomes bytes.

`Fetcher.fetch(url)` gives a `Fetched` for whatever the web does, with one Status:

    what happened                                        Status              another try
    ---------------------------------------------------  ------------------  -----------
    a picture arrived whole                              ok
    not http(s) / no host, or cannot be parsed           url_scheme / url_invalid
    a private, loopback, metadata ... address            address_refused
    no such name, no name server answered                dns_error           inside the look-up
    refused, no route                                    connect_error       yes
    a certificate or a handshake that fails              tls_error
    no connection within connect_timeout_s               timeout             yes
    no whole answer within timeout_s                     timeout             no time is left
    a host that never answers, once that is known        timeout
    closed or reset before the headers were there        connection_lost     yes, and once by aiohttp itself
    not HTTP, or headers beyond the limits               protocol_error
    no target, a loop, too many, not http(s)             bad_redirect
    4xx / 429 / 5xx / any other but 2xx                  http_4xx / http_429 / http_5xx / http_other   429, 5xx
    robots.txt, where the job heeds it / X-Robots-Tag    robots_disallowed / opted_out
    no bytes / too many / fewer than announced           empty_body / body_too_large / body_truncated  truncated
    SVG, HEIC, ... / HTML, JSON, ...                     image_unsupported / not_an_image

Exceptions become a Status in `_STATUS_OF`, bodies in `body.py`, addresses in `addresses.py`.
"""

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType

import aiodns
import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from pairmill.pipeline.common.faults import LocalFault, local_fault
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.fetch import optout
from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.body import FetchError, PictureBody
from pairmill.pipeline.fetch.circuit_breaker import SilentHosts
from pairmill.pipeline.fetch.dns import AddressRefused, HostNames, NoSuchHost
from pairmill.pipeline.fetch.retry_policy import is_redirect, require_success, wait_before_retry_s
from pairmill.pipeline.fetch.robots import MAX_BYTES as MAX_ROBOTS_BYTES
from pairmill.pipeline.fetch.robots import RobotsFiles
from pairmill.pipeline.fetch.slots import ByteBudget, Deadline, HostSlots, Share
from pairmill.pipeline.fetch.urls import parse_target, redirect_target
from pairmill.schemas.jobs import FetchConfig
from pairmill.schemas.status import Status

_CONTENT_TYPE_CHARS = 100
_HEADER_BYTES = 8190  # per header and for the status line; aiohttp's default, and Apache's LimitRequestFieldSize
_KEEP_ALIVE_S = 2.0  # thousands of hosts: idle sockets must not pile up against the limit of open files
_LEAST_MISSES = 4  # a host that one or two may ask at a time gets more chances than that
_ROBOTS_REDIRECTS = 5
_OTHER_FILES = 256  # name look-ups, Python's own, Ray's
_DNS_TRIES = 3  # whatever the job says of retries: UDP loses packets, most of all where many are sent at once
_DNS_S = 5.0  # for all tries of one look-up: resolv.conf's defaults (5 s, twice, per server) take half a URL's time
_NO_SUCH_NAME = frozenset({aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA, aiodns.error.ARES_EBADNAME})

# The first that matches counts, so the narrow come before the wide.
_STATUS_OF: tuple[tuple[type[Exception], Status], ...] = (
    (aiohttp.InvalidURL, Status.URL_INVALID),
    (aiohttp.ClientConnectorDNSError, Status.DNS_ERROR),
    (aiohttp.ClientSSLError, Status.TLS_ERROR),  # certificates too
    (ssl.SSLError, Status.TLS_ERROR),
    (aiohttp.ServerTimeoutError, Status.TIMEOUT),
    (aiohttp.ClientConnectorError, Status.CONNECT_ERROR),
    (aiohttp.ClientPayloadError, Status.BODY_TRUNCATED),  # Content-Length or last chunk not reached
    (aiohttp.ClientResponseError, Status.PROTOCOL_ERROR),
    (HttpProcessingError, Status.PROTOCOL_ERROR),
    (aiohttp.ClientConnectionError, Status.CONNECTION_LOST),
    (ConnectionError, Status.CONNECTION_LOST),
    (aiohttp.ClientError, Status.PROTOCOL_ERROR),
)
_CAUGHT = tuple(kind for kind, _ in _STATUS_OF)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of one URL. `status` is OK or one that the table above names."""

    status: Status
    detail: str | None
    http_status: int | None
    final_url: str | None  # of the last answer; None where no answer came
    content_type: str | None
    num_bytes: int | None
    attempts: int
    seconds: float  # spent on this URL; waiting for a turn not counted
    fetched_at: datetime
    body: bytes | None

    def without_body(self) -> "Fetched":
        """The evidence alone, so that the original bytes can go."""
        return replace(self, body=None)


@dataclass(slots=True)
class _Evidence:
    """What is known, and held, so far of a URL being fetched."""

    share: Share
    attempts: int = 0
    http_status: int | None = None
    final_url: str | None = None
    content_type: str | None = None


RefusedRedirect = Callable[[str], tuple[Status, str] | None]


class Fetcher:
    """Downloads pictures within limits of time, size, place and manners. One per event loop; use `async with`.

    `budget` counts bodies as they arrive, and holds back new requests while there is too much of them.
    `refused_redirect` says of a URL that a server redirects to why it may not be asked for: the URL rules hold there
    too.
    """

    def __init__(
        self, config: FetchConfig, budget: ByteBudget, refused_redirect: RefusedRedirect = lambda _: None
    ) -> None:
        self._config = config
        self._budget = budget
        self._refused_redirect = refused_redirect
        self._guard = AddressGuard(config.allow_networks)
        self._token = optout.agent_token(config.user_agent)

    async def __aenter__(self) -> "Fetcher":
        config = self._config
        _raise_file_limit(2 * config.concurrency + _OTHER_FILES)  # half of them idle, kept alive
        self._slots = HostSlots(config.per_host_concurrency, config.concurrency, config.per_host_interval_s)
        self._silent = SilentHosts(
            limit=max(config.per_host_concurrency, _LEAST_MISSES),
            least_wait_s=min(config.connect_timeout_s, config.timeout_s / 2),
        )
        self._robots = RobotsFiles(self._get_robots, self._token)
        self._resolver = _Resolver(self._guard, min(_DNS_S, config.timeout_s / 2), config.nameservers)
        connector = aiohttp.TCPConnector(
            limit=0,  # HostSlots counts
            use_dns_cache=False,  # _Resolver has one that remembers failures too
            resolver=self._resolver,
            socket_factory=self._open_socket,
            keepalive_timeout=_KEEP_ALIVE_S,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout_s),
            headers={"User-Agent": config.user_agent, "Accept": "image/*,*/*;q=0.8", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._robots.close()
        await self._session.close()
        await self._resolver.close()

    def _open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Open the socket for an address, or refuse: the last step before connecting, for every connection."""
        family, kind, protocol, _, address = info
        if (refusal := self._guard.refusal(str(address[0]))) is not None:
            raise AddressRefused(refusal)
        return socket.socket(family, kind, protocol)

    async def fetch(self, url: str) -> Fetched:
        """Download one picture. Raises nothing for what a server does, LocalFault for what is wrong here.

        A body stays counted in the budget: the caller gives its bytes back.
        """
        body, deadline = None, Deadline(self._config.timeout_s)
        evidence = _Evidence(Share(self._budget, deadline))
        status, detail = Status.OK, None
        try:
            async with deadline:
                body = await self._try_again(url, evidence, deadline)
        except FetchError as failure:
            status, detail = failure.status, failure.detail
        except TimeoutError:
            if not deadline.expired:
                raise
            status, detail = Status.TIMEOUT, f"not done within {self._config.timeout_s:g} s"
        finally:
            if body is None:
                evidence.share.let_go()
            else:
                evidence.share.hand_over()
        return Fetched(
            status=status,
            detail=clean_text(detail),
            http_status=evidence.http_status,
            final_url=evidence.final_url,
            content_type=evidence.content_type,
            num_bytes=None if body is None else len(body),
            attempts=evidence.attempts,
            seconds=self._config.timeout_s - deadline.left,
            fetched_at=datetime.now(UTC),
            body=body,
        )

    async def _try_again(self, url: str, evidence: _Evidence, deadline: Deadline) -> bytes:
        """Attempts until one succeeds, fails for good, or no time is left."""
        start = parse_target(url)
        while True:
            evidence.attempts += 1
            try:
                return await self._follow(start, evidence, deadline)
            except FetchError as failure:
                wait_s = wait_before_retry_s(failure, evidence.attempts, self._config.retries)
                if wait_s is None or wait_s >= deadline.left:
                    raise
            await asyncio.sleep(wait_s)

    async def _follow(self, url: URL, evidence: _Evidence, deadline: Deadline) -> bytes:
        """One attempt: the URL and what it redirects to."""
        evidence.http_status = evidence.final_url = evidence.content_type = None
        await evidence.share.hold(0)  # what an attempt before this one held
        seen = {url}
        while True:
            if self._config.respect_robots_txt:
                await self._robots.require_allowed(url)
            async with self._turn(url.host or "", deadline):
                with self._silent.watch(url.authority):
                    answer = await self._request(url, evidence)
            if isinstance(answer, bytes):
                return answer
            if len(seen) > self._config.max_redirects:
                raise FetchError(Status.BAD_REDIRECT, f"more than {self._config.max_redirects} redirects")
            if answer in seen:
                raise FetchError(Status.BAD_REDIRECT, f"loop to {answer}")
            if (refusal := self._refused_redirect(str(answer))) is not None:
                raise FetchError(*refusal)
            seen.add(answer)
            url = answer

    @asynccontextmanager
    async def _turn(self, host: str, deadline: Deadline) -> AsyncIterator[None]:
        """Wait, with the clock stopped, until the host, the limit of requests and the memory allow a request."""
        waits = self._slots.would_wait(host) or self._budget.is_full
        if waits:
            deadline.pause()
        async with self._slots.hold(host):
            await self._budget.wait_for_room()
            if waits:
                deadline.resume()
            yield

    async def _request(self, url: URL, evidence: _Evidence) -> bytes | URL:
        """One request: the body, or where to go on. Leaving early closes the connection, so no byte more is read."""
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                evidence.http_status = response.status
                evidence.final_url = str(url)
                evidence.content_type = clean_text(response.headers.get("Content-Type"), _CONTENT_TYPE_CHARS)
                if is_redirect(response.status):
                    return redirect_target(url, response.headers.get("Location"))
                require_success(response.status, response.headers.get("Retry-After"))
                return await self._read(response, evidence.share)
        except _CAUGHT as error:
            raise _explain(error) from error

    async def _get_robots(self, url: URL) -> tuple[int, bytes]:
        """(HTTP status, first bytes) of a robots.txt, up to five redirects on (RFC 9309 section 2.3.1.2)."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                for _ in range(_ROBOTS_REDIRECTS + 1):
                    async with (
                        self._slots.hold(url.host or ""),
                        self._session.get(url, allow_redirects=False) as response,
                    ):
                        if not is_redirect(response.status):
                            return response.status, await _first_bytes(response, MAX_ROBOTS_BYTES)
                        url = redirect_target(url, response.headers.get("Location"))
        except TimeoutError as error:
            raise FetchError(Status.TIMEOUT, f"not done within {self._config.timeout_s:g} s") from error
        except _CAUGHT as error:
            raise _explain(error) from error
        return 404, b""  # too many redirects count as unavailable

    async def _read(self, response: aiohttp.ClientResponse, share: Share) -> bytes:
        if self._config.respect_x_robots_tag:
            directive = optout.refusing_directive(response.headers.getall("X-Robots-Tag", ()), self._token)
            if directive is not None:
                raise FetchError(Status.OPTED_OUT, f"X-Robots-Tag: {directive}")
        headers, announced = response.headers, response.content_length or 0
        if announced > self._config.max_bytes:
            raise FetchError(Status.BODY_TOO_LARGE, f"{announced} bytes announced")
        body = PictureBody(self._config.max_bytes, headers.get("Content-Type"), headers.get("Content-Encoding", ""))
        async for chunk in response.content.iter_any():
            await share.hold(body.most_after(chunk))
            body.add(chunk)
            await share.hold(body.num_bytes)
        return body.finish()


async def _first_bytes(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size >= max_bytes:
            break
    return b"".join(chunks)[:max_bytes]


class _Resolver(AbstractResolver):
    """aiohttp's view of HostNames; the look-ups are c-ares', which reads /etc/hosts and resolv.conf."""

    def __init__(self, guard: AddressGuard, deadline_s: float, nameservers: list[str]) -> None:
        self._deadline_s = deadline_s
        first_s = deadline_s / (2**_DNS_TRIES - 1)  # each try waits twice as long as the one before
        self._dns = aiodns.DNSResolver(nameservers=nameservers or None, timeout=first_s, tries=_DNS_TRIES)
        self._names = HostNames(self._look_up, guard)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._names.addresses(host)
        ]

    async def close(self) -> None:
        await self._names.close()
        await self._dns.close()

    async def _look_up(self, name: str) -> list[str]:
        try:
            async with asyncio.timeout(self._deadline_s):
                found = await self._dns.getaddrinfo(name, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except TimeoutError as error:
            raise OSError(f"no answer for {name} within {self._deadline_s:g} s") from error
        except UnicodeError as error:
            raise NoSuchHost(f"{name} is no host name") from error
        except aiodns.error.DNSError as error:
            socket.socket().close()  # c-ares says "no server answers" where it could not open a socket: this says why
            kind = NoSuchHost if error.args[0] in _NO_SUCH_NAME else OSError
            raise kind(f"{name}: {error.args[-1]}") from error
        return [node.addr[0].decode() for node in found.nodes]


def _raise_file_limit(wanted: int) -> None:
    """Let this process open as many files as it is going to need. Raises LocalFault where it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise LocalFault(f"at most {hard} open files are allowed here; fetch.concurrency needs {wanted}: lower it")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _explain(error: Exception) -> FetchError:
    """The Status of an exception, with the words of its innermost cause. Raises LocalFault."""
    inner = getattr(error, "os_error", error)
    if (fault := local_fault(inner)) is not None:
        raise fault from error
    if isinstance(inner, AddressRefused):
        return FetchError(Status.ADDRESS_REFUSED, str(inner))
    status = next(status for kind, status in _STATUS_OF if isinstance(error, kind))
    words = getattr(inner, "message", None) or getattr(inner, "strerror", None) or inner
    return FetchError(status, str(words) or type(error).__name__)
