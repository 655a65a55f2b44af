"""THE place where a URL becomes bytes.

Whatever a server does, `Fetcher.fetch(url)` returns a `FetchOutcome` with one Status:

    what happened                                        Status              retried
    ---------------------------------------------------  ------------------  -----------
    the whole picture arrived                            ok
    not http(s) / no host, or cannot be parsed           url_scheme / url_invalid
    a private, loopback, metadata ... address            address_refused
    no such name, no name server answered                dns_error           inside the look-up
    refused, no route                                    connect_error       yes
    bad certificate, failed handshake, TLS alert         tls_error
    no connection within connect_timeout_s               timeout             yes
    response incomplete after timeout_s                  timeout             no time left
    host known not to answer                             timeout
    closed or reset before the headers arrived           connection_lost     yes
    not HTTP, or headers beyond the limits               protocol_error
    redirect: no target, a loop, too many, not http(s)   bad_redirect
    4xx / 429 / 5xx / anything else but 2xx              http_4xx / http_429 / http_5xx / http_other   429, 5xx
    robots.txt, if the job respects it / X-Robots-Tag    robots_disallowed / opted_out
    no bytes / too many / fewer than announced           empty_body / body_too_large / body_truncated  truncated
    SVG, HEIC, ... / HTML, JSON, ...                     image_unsupported / not_an_image

Exceptions become a Status in `http_client.py`, URLs are refused in `urls.py`, addresses in `addresses.py`, bodies in
`response_body.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.common.url_parser import HttpUrl, ParsedUrl, parse_url
from pairmill.pipeline.fetch import optout
from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.byte_budget import ByteBudget, Reservation
from pairmill.pipeline.fetch.circuit_breaker import CircuitBreaker
from pairmill.pipeline.fetch.deadline import Deadline
from pairmill.pipeline.fetch.decompressor import decompressed_text
from pairmill.pipeline.fetch.file_limit import raise_file_limit
from pairmill.pipeline.fetch.host_limiter import HostLimiter
from pairmill.pipeline.fetch.http_client import HttpClient, Response
from pairmill.pipeline.fetch.http_response import ResponseHead
from pairmill.pipeline.fetch.outcome import FetchError, FetchOutcome
from pairmill.pipeline.fetch.resolver import GuardedResolver
from pairmill.pipeline.fetch.response_body import ResponseBody
from pairmill.pipeline.fetch.retry_policy import is_redirect, require_success, retry_delay_s
from pairmill.pipeline.fetch.robots import READ_BYTES as ROBOTS_READ_BYTES
from pairmill.pipeline.fetch.robots import RobotsTxtCache
from pairmill.pipeline.fetch.stall_monitor import StallMonitor
from pairmill.pipeline.fetch.urls import redirect_target, request_url
from pairmill.schemas.job.fetch import FetchConfig
from pairmill.schemas.status import Status

_CONTENT_TYPE_CHARS = 100
_MIN_TIMEOUTS = 4  # timeouts in a row that open a host's circuit, even if it allows only one or two requests at a time
_ROBOTS_REDIRECTS = 5

_MAYBE_OUR_FAULT = frozenset({Status.CONNECT_ERROR, Status.CONNECTION_LOST, Status.BODY_TRUNCATED})
"""Failures that a stall of this machine may have caused, because servers gave up on us. See Deadline for timeouts."""

_MAX_STALLS = 10

_EXPECTED_SHARE = 0.25
"""Share of the budget for requests in flight whose bodies have not arrived yet. By default, 17 kB for each of them."""

RedirectRule = Callable[[ParsedUrl], tuple[Status, str] | None]
"""The Status and detail with which the URL rules refuse a redirect's target; None if they allow it."""


@dataclass(slots=True)
class _Download:
    """One URL while it is being fetched: what is known about the response so far, and the bytes it has reserved."""

    deadline: Deadline
    reservation: Reservation
    attempts: int = 0
    http_status: int | None = None
    final_url: str | None = None
    content_type: str | None = None

    def forget_response(self) -> None:
        self.http_status = self.final_url = self.content_type = None

    def outcome(self, status: Status, detail: str | None, body: bytes | None, timeout_s: float) -> FetchOutcome:
        return FetchOutcome(
            status=status,
            detail=clean_text(detail),
            http_status=self.http_status,
            final_url=self.final_url,
            content_type=self.content_type,
            fetch_attempts=self.attempts,
            fetch_s=timeout_s - self.deadline.remaining_s,
            fetched_at=datetime.now(UTC),
            original_bytes=None if body is None else len(body),
            body=body,
        )


class Fetcher:
    """Downloads pictures within limits of time, size, addresses and request rates. One per event loop; `async with`.

    `budget` counts bodies as they arrive and delays new requests while it is full. `redirect_rule` applies the URL
    rules to the targets of redirects.
    """

    def __init__(self, config: FetchConfig, budget: ByteBudget, redirect_rule: RedirectRule = lambda _: None) -> None:
        self._config = config
        self._budget = budget
        self._expected_bytes = int(_EXPECTED_SHARE * budget.limit_bytes / config.concurrency)
        self._redirect_rule = redirect_rule
        self._guard = AddressGuard(config.allow_networks)
        self._token = optout.agent_token(config.user_agent)

    async def __aenter__(self) -> "Fetcher":
        config = self._config
        raise_file_limit(config.concurrency)
        self._limiter = HostLimiter(config.per_host_concurrency, config.concurrency, config.per_host_interval_s)
        self._stalls = StallMonitor()
        self._breaker = CircuitBreaker(
            max_timeouts=max(config.per_host_concurrency, _MIN_TIMEOUTS),
            min_wait_s=min(config.connect_timeout_s, config.timeout_s / 2),
            stalled_since=self._stalls.stalled_since,
        )
        self._robots = RobotsTxtCache(self._fetch_robots_txt, self._token)
        self._resolver = GuardedResolver(self._guard, config, self._stalls)
        self._client = HttpClient(config, self._guard, self._resolver, self._stalls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._robots.close()
        self._client.close()
        await self._resolver.close()
        self._stalls.close()

    @property
    def last_stall_end(self) -> float:
        """End of this loop's last stall, on the clock of time.monotonic()."""
        return self._stalls.last_stall_end

    @property
    def in_flight(self) -> int:
        """Number of running requests."""
        return self._limiter.running

    async def fetch(self, url: str) -> FetchOutcome:
        """Download one picture; the outcome includes its body. Raises only LocalFault, never because of a server.

        The body's bytes stay reserved in the budget until the caller calls `release_decoded`. A URL that fails while
        this machine stalls is tried again with its full time limit.
        """
        for _ in range(_MAX_STALLS):
            started = time.monotonic()
            outcome = await self._fetch_within_deadline(url)
            if outcome.status not in _MAYBE_OUR_FAULT or not self._stalls.stalled_since(started):
                break
        return outcome

    async def _fetch_within_deadline(self, url: str) -> FetchOutcome:
        timeout_s, body = self._config.timeout_s, None
        deadline = Deadline(timeout_s, self._stalls)
        download = _Download(deadline, Reservation(self._budget, deadline))
        status, detail = Status.OK, None
        try:
            async with deadline:
                body = await self._fetch_with_retries(url, download)
        except FetchError as failure:
            status, detail = failure.status, failure.detail
        except TimeoutError:
            if not deadline.expired:
                raise
            status, detail = Status.TIMEOUT, f"not done within {timeout_s:g} s"
        finally:
            if body is None:
                download.reservation.release()
            else:
                download.reservation.hand_over()
        return download.outcome(status, detail, body, timeout_s)

    async def _fetch_with_retries(self, url: str, download: _Download) -> bytes:
        """The body. Makes attempts until one succeeds or fails for good, or time runs out."""
        first_url = request_url(url)
        while True:
            download.attempts += 1
            try:
                return await self._fetch_with_redirects(first_url, download)
            except FetchError as failure:
                delay_s = retry_delay_s(failure, download.attempts, self._config.retries)
                if delay_s is None or delay_s >= download.deadline.remaining_s:
                    raise
            await download.reservation.resize(0)  # otherwise, sleeping requests would keep others from starting
            await asyncio.sleep(delay_s)

    async def _fetch_with_redirects(self, url: HttpUrl, download: _Download) -> bytes:
        """The body, in one attempt: request the URL, then the URLs that it redirects to."""
        download.forget_response()
        seen = {url}
        while True:
            await download.reservation.resize(0)  # the previous request's bytes
            if self._config.respect_robots_txt:
                await self._require_allowed_by_robots_txt(url, download.deadline)
            slot = self._request_slot(url.name, download.deadline, download.reservation)
            async with slot, self._breaker.track(url.authority, download.deadline):
                result = await self._request(url, download)
            if isinstance(result, bytes):
                return result
            self._require_allowed_redirect(result, seen)
            seen.add(result)
            url = result

    def _require_allowed_redirect(self, target: HttpUrl, seen: set[HttpUrl]) -> None:
        if len(seen) > self._config.max_redirects:
            raise FetchError(Status.BAD_REDIRECT, f"more than {self._config.max_redirects} redirects")
        if target in seen:
            raise FetchError(Status.BAD_REDIRECT, f"loop to {target}")
        if (refusal := self._redirect_rule(parse_url(str(target)))) is not None:
            raise FetchError(*refusal)

    @asynccontextmanager
    async def _request_slot(
        self, host: str, deadline: Deadline, reservation: Reservation | None = None
    ) -> AsyncIterator[None]:
        """Wait, with the clock paused, until the host's limit, the total limit and, for a body, memory allow a
        request."""
        must_wait = self._limiter.would_wait(host) or self._budget.is_full
        if must_wait:
            deadline.pause()
        async with self._limiter.acquire(host):
            if reservation is not None:
                await reservation.start(self._expected_bytes)
            if must_wait:
                deadline.resume()
            yield

    async def _require_allowed_by_robots_txt(self, url: HttpUrl, deadline: Deadline) -> None:
        """Raise FetchError if robots.txt does not allow the URL. The URL's clock is paused, because fetching the file
        has its own deadline, and many URLs may wait for it."""
        with deadline.paused():
            await self._robots.require_allowed(url)

    async def _request(self, url: HttpUrl, download: _Download) -> bytes | HttpUrl:
        """The result of one request: the body, or the URL that it redirects to.

        If the body is not needed, closes the connection instead of reading on.
        """
        async with self._client.get(url, download.deadline) as response:
            head = response.head
            download.http_status = head.status
            download.final_url = str(url)
            download.content_type = clean_text(head.get("content-type"), _CONTENT_TYPE_CHARS)
            if is_redirect(head.status):
                return redirect_target(url, head.get("location"))
            require_success(head.status, head.get("retry-after"))
            self._require_no_opt_out(head)
            return await self._read_body(response, download.reservation)

    def _require_no_opt_out(self, head: ResponseHead) -> None:
        if self._config.respect_x_robots_tag:
            directive = optout.opt_out_directive(head.get_all("x-robots-tag"), self._token)
            if directive is not None:
                raise FetchError(Status.OPTED_OUT, f"X-Robots-Tag: {directive}")

    async def _read_body(self, response: Response, reservation: Reservation) -> bytes:
        announced = response.parser.content_length or 0
        if announced > self._config.max_bytes:
            raise FetchError(Status.BODY_TOO_LARGE, f"{announced} bytes announced")
        head = response.head
        body = ResponseBody(self._config.max_bytes, head.get("content-type"), head.codings)
        async for chunk in response.chunks():
            await reservation.resize(body.max_bytes_after(chunk))
            body.add(chunk)
            await reservation.resize(body.num_bytes)
        whole = body.finish()  # decompressed, so it can be larger
        await reservation.resize(len(whole))
        return whole

    async def _fetch_robots_txt(self, url: HttpUrl) -> tuple[int, bytes]:
        return await self._stalls.repeat_if_stalled(lambda: self._get_robots_txt(url), FetchError)

    async def _get_robots_txt(self, url: HttpUrl) -> tuple[int, bytes]:
        """(HTTP status, first bytes) of a robots.txt. Follows up to five redirects (RFC 9309 section 2.3.1.2)."""
        try:
            async with Deadline(self._config.timeout_s, self._stalls) as deadline:
                for _ in range(_ROBOTS_REDIRECTS + 1):
                    slot = self._request_slot(url.name, deadline)
                    async with slot, self._client.get(url, deadline) as response:
                        head = response.head
                        if 200 <= head.status < 300:
                            body = await response.read_prefix(ROBOTS_READ_BYTES)
                            return head.status, decompressed_text(body, head.codings, ROBOTS_READ_BYTES)
                        if not is_redirect(head.status):
                            return head.status, b""
                        url = redirect_target(url, head.get("location"))
        except TimeoutError as error:
            raise FetchError(Status.TIMEOUT, f"not done within {self._config.timeout_s:g} s") from error
        return 404, b""  # too many redirects count as unavailable
