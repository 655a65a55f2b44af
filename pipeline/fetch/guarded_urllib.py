"""Wraps urllib with our limits, for img2dataset: only allowed addresses, bounded bodies and the job's user agent.

When a download fails, img2dataset keeps only the exception's text. So the text of each exception that leaves
`GuardedOpener` is a random ticket, which `failures` maps to the real outcome: no text from a server is ever
interpreted.
"""

import http.client
import secrets
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPMessage
from typing import IO, Any

from pairmill.pipeline.common.faults import LocalFault, local_fault
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.common.url_parser import parse_url
from pairmill.pipeline.fetch import optout
from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.dns import AddressRefused, NoSuchHost
from pairmill.pipeline.fetch.outcome import FetchError, FetchOutcome
from pairmill.pipeline.fetch.retry_policy import is_redirect, require_success
from pairmill.pipeline.fetch.timed_http import TimedConnection, TimedTlsConnection
from pairmill.pipeline.fetch.urls import redirect_target, request_url
from pairmill.pipeline.rules import SourceRules
from pairmill.pipeline.rules.url import refused_redirect
from pairmill.schemas.job.fetch import FetchConfig
from pairmill.schemas.status import Status

_CHUNK_BYTES = 1 << 16

_Bound = Callable[[urllib.request.Request, http.client.HTTPResponse], http.client.HTTPResponse]
_ASKED = "asked_url"
"""The attribute of a request that contains the URL that it began with, before redirects."""

# The first match counts, so subclasses come before their base classes.
_STATUS_OF: tuple[tuple[type[BaseException], Status], ...] = (
    (AddressRefused, Status.ADDRESS_REFUSED),
    (NoSuchHost, Status.DNS_ERROR),
    (socket.gaierror, Status.DNS_ERROR),
    (UnicodeError, Status.DNS_ERROR),  # a name that IDNA does not allow
    (TimeoutError, Status.TIMEOUT),
    (ssl.SSLError, Status.TLS_ERROR),  # includes bad certificates
    (http.client.RemoteDisconnected, Status.CONNECTION_LOST),
    (http.client.IncompleteRead, Status.BODY_TRUNCATED),
    (ConnectionRefusedError, Status.CONNECT_ERROR),
    (ConnectionError, Status.CONNECTION_LOST),
    (http.client.HTTPException, Status.PROTOCOL_ERROR),
    (OSError, Status.CONNECT_ERROR),  # no route to the host, network unreachable
)


class _Ticket(Exception):
    """An exception whose text is a key of `GuardedOpener.failures`."""


class GuardedOpener(urllib.request.OpenerDirector):
    """Opens http and https URLs and follows their redirects. No files, no FTP, no proxies from the environment."""

    def __init__(self, config: FetchConfig, rules: SourceRules) -> None:
        super().__init__()
        self._config = config
        self._token = optout.agent_token(config.user_agent)
        self.failures: dict[str, FetchOutcome | LocalFault] = {}
        """Outcomes, keyed by the text of the exception that `open` or the response's `read` raised."""
        self.final_urls: dict[str, str] = {}
        """URL -> the URL of its last response, after redirects. No entry if there was no response."""
        connect = partial(_connect, guard=AddressGuard(config.allow_networks), timeout_s=config.connect_timeout_s)
        for handler in (
            _HttpHandler(connect, config.user_agent, self._bound),
            _HttpsHandler(connect, config.user_agent, self._bound),
            urllib.request.HTTPDefaultErrorHandler(),
            _RedirectHandler(rules, config.max_redirects),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            self.add_handler(handler)

    def open(self, fullurl: Any, data: Any = None, timeout: Any = socket._GLOBAL_DEFAULT_TIMEOUT) -> Any:  # type: ignore[attr-defined]
        """Like OpenerDirector.open, but raises tickets. Called again, from inside the first call, for each redirect."""
        try:
            if not hasattr(fullurl, _ASKED):  # it is not a redirect, but perhaps another attempt
                setattr(fullurl, _ASKED, fullurl.full_url)  # `fullurl` is a Request
                self.final_urls.pop(fullurl.full_url, None)
            fullurl.full_url = str(request_url(fullurl.full_url))
            response = super().open(fullurl, data, self._config.timeout_s)
            self._require_usable(response)
        except _Ticket:
            raise
        except Exception as error:
            raise self._ticket(error) from None
        return response

    def _require_usable(self, response: Any) -> None:
        try:
            require_success(response.status, None)  # urllib accepts 206
            if self._config.respect_x_robots_tag:
                directive = optout.opt_out_directive(response.headers.get_all("X-Robots-Tag", []), self._token)
                if directive is not None:
                    raise FetchError(Status.OPTED_OUT, f"X-Robots-Tag: {directive}")
        except FetchError:
            response.close()
            raise

    def _bound(self, request: urllib.request.Request, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        """Record where a response comes from, and limit the size of every body, including those of redirects."""
        self.final_urls[getattr(request, _ASKED)] = request.full_url
        response.read = partial(self._read_bounded, response, response.read)  # type: ignore[method-assign]
        return response

    def _read_bounded(
        self, response: http.client.HTTPResponse, read: Callable[[int], bytes], amount: int | None = None
    ) -> bytes:
        """The whole body, whatever `amount` is."""
        try:
            return self._whole_body(response, read)
        except Exception as error:
            response.close()
            raise self._ticket(error) from None

    def _whole_body(self, response: http.client.HTTPResponse, read: Callable[[int], bytes]) -> bytes:
        chunks, size = [], 0
        try:
            while chunk := read(_CHUNK_BYTES):
                chunks.append(chunk)
                size += len(chunk)
                if size > self._config.max_bytes:
                    raise FetchError(Status.BODY_TOO_LARGE, f"more than {self._config.max_bytes} bytes")
        except ConnectionError as error:
            raise FetchError(Status.BODY_TRUNCATED, str(error)) from None
        if response.length and 200 <= response.status < 300:  # nobody needs the body of a redirect
            raise FetchError(Status.BODY_TRUNCATED, f"{response.length:,} bytes are missing")
        return b"".join(chunks)

    def _ticket(self, error: Exception) -> _Ticket:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        ticket = secrets.token_hex(16)
        cause = getattr(error, "reason", error) if isinstance(error, urllib.error.URLError) else error
        fault = local_fault(cause) if isinstance(cause, BaseException) else None
        self.failures[ticket] = fault or _failure(error, cause)
        return _Ticket(ticket)


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    max_redirections = 1_000  # instead of 10, because we count redirects ourselves

    def __init__(self, rules: SourceRules, max_redirects: int) -> None:
        self._rules = rules
        self._max_redirects = max_redirects

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        try:
            target = self._allowed_target(req, headers)
        except FetchError:
            fp.close()
            raise
        new = super().redirect_request(req, fp, code, msg, headers, target)
        setattr(new, _ASKED, getattr(req, _ASKED))
        return new

    def _allowed_target(self, request: urllib.request.Request, headers: HTTPMessage) -> str:
        if len(getattr(request, "redirect_dict", ())) >= self._max_redirects:  # urllib's own record
            raise FetchError(Status.BAD_REDIRECT, f"more than {self._max_redirects} redirects")
        # http.client decodes header fields as Latin-1; servers mean UTF-8.
        location = (headers["Location"] or "").encode("latin-1", "replace").decode("utf-8", "surrogateescape")
        target = str(redirect_target(request_url(request.full_url), location))
        if (refusal := refused_redirect(parse_url(target), self._rules)) is not None:
            raise FetchError(Status.BAD_REDIRECT, f"redirect not allowed: {refusal[0]}: {refusal[1]}")
        return target


class _GuardedHandler(urllib.request.AbstractHTTPHandler):
    """Opens connections with `connect`, sends our user agent, and bounds the responses."""

    connection: type[http.client.HTTPConnection]

    def __init__(self, connect: Callable[..., socket.socket], user_agent: str, bound: _Bound) -> None:
        super().__init__()
        self._connect = connect
        self._user_agent = user_agent
        self._bound = bound

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        request.headers["User-agent"] = self._user_agent
        return self._bound(request, self.do_open(self._connection, request))

    def _connection(self, *arguments: Any, **options: Any) -> http.client.HTTPConnection:
        connection = self.connection(*arguments, **options)
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        return connection


class _HttpHandler(_GuardedHandler):
    connection = TimedConnection
    http_open = _GuardedHandler._open


class _HttpsHandler(_GuardedHandler):
    connection = TimedTlsConnection
    https_open = _GuardedHandler._open


def _connect(
    address: tuple[str, int], timeout: Any = None, source_address: Any = None, *, guard: AddressGuard, timeout_s: float
) -> socket.socket:
    """Like socket.create_connection, but only for allowed addresses: connects to the exact address that was checked."""
    error: Exception = NoSuchHost(f"{address[0]} has no address")
    for *_, (host, port, *_) in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        if (refusal := guard.refusal(str(host))) is not None:
            error = AddressRefused(refusal)
            continue
        try:
            return socket.create_connection((str(host), int(port)), timeout_s)
        except OSError as failure:
            error = failure
    raise error


def _failure(error: Exception, cause: Any) -> FetchOutcome:
    """The outcome of one failed URL. `cause`: the error itself or, for a URLError, its reason."""
    code = error.code if isinstance(error, urllib.error.HTTPError) else None
    detail = error.detail if isinstance(error, FetchError) else str(error) or type(error).__name__
    return FetchOutcome(
        status=_status(error, cause) if code is None else _http_status(code),
        detail=clean_text(detail),
        http_status=code,
        fetched_at=datetime.now(UTC),
    )


def _status(error: Exception, cause: Any) -> Status:
    if isinstance(error, FetchError):
        return error.status
    return next((status for kind, status in _STATUS_OF if isinstance(cause, kind)), Status.PROTOCOL_ERROR)


def _http_status(code: int) -> Status:
    """The Status for the code of an HTTPError. urllib raises it for redirects too, if it does not follow them: a loop,
    too many redirects, or a target that is not http(s)."""
    if code == 429:
        return Status.HTTP_429
    if is_redirect(code):
        return Status.BAD_REDIRECT
    if 400 <= code < 500:
        return Status.HTTP_4XX
    return Status.HTTP_5XX if 500 <= code < 600 else Status.HTTP_OTHER
