"""Decides which requests are answered, and adds the headers that stop a page from running or loading anything foreign.

Against DNS rebinding, `Host` must name this server. Against other origins, `Sec-Fetch-Site` and `Origin` must be those
of this server; a link on another site may only open a page. Beyond loopback, a request needs a token, which becomes a
cookie.
"""

import functools
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_FORM_BYTES = 64 << 10
MAX_PICTURE_BYTES = 20 << 20
MAX_ADDRESS_BYTES = 32 << 10

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers would send forms with the origin `null`
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_SAFE = ("GET", "HEAD")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether an address to bind to can be reached only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Guard:
    """Decides which requests the server answers."""

    host: str
    """The address that the server is bound to."""
    port: int
    access_token: str | None = None
    """Needed beyond loopback; None on loopback."""
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """Every request that changes something must include it: only this server's own pages contain it."""

    @classmethod
    def of(cls, host: str, port: int) -> "Guard":
        """A guard with new tokens."""
        return cls(host, port, None if is_loopback(host) else secrets.token_urlsafe(24))

    @property
    def address(self) -> str:
        """The address of the first page."""
        host = socket.gethostname() if _is_unspecified(self.host) else self.host
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        token = f"?{urlencode({'token': self.access_token})}" if self.access_token else ""
        return f"http://{host}:{self.port}/{token}"

    @property
    def cookie(self) -> str:
        """Name of the cookie. Cookies ignore ports, so the name contains the port."""
        return f"pairmill_explore_{self.port}"

    def is_own_host(self, host: str) -> bool:
        """Whether `Host` names this server."""
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not name:
            name, port = host, ""
        if port != str(self.port) and not (self.port == 80 and not port):
            return False
        name = name.lower()
        if name in _LOOPBACK:
            return True
        own = self.host.lower()
        if _is_unspecified(own):  # under DNS rebinding, `Host` is a name, not a literal address
            return _is_literal(name) or name in _own_names()
        return name.strip("[]") == own.strip("[]")

    def problem(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """(HTTP status, reason) if a request must be refused."""
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > MAX_ADDRESS_BYTES:
            return 414, "The address is too long."
        if not self.is_own_host(headers.get("host", "")):
            return 421, f"This server does not answer to this name. On its machine, open http://127.0.0.1:{self.port}/"
        if not self._is_same_origin(scope["method"], headers):
            return 403, "Requests from other origins are refused."
        if scope["method"] not in (*_SAFE, "POST"):
            return 405, "This server accepts only GET and POST."
        limit = MAX_PICTURE_BYTES if scope["path"] == "/search" else MAX_FORM_BYTES
        length = headers.get("content-length", "0")
        if scope["method"] == "POST" and not (length.isascii() and length.isdigit() and int(length) <= limit):
            return 413, f"The request is larger than {limit:,} bytes."
        if scope["method"] == "POST" and "transfer-encoding" in headers:
            return 411, "A request needs a Content-Length."
        return None

    def _is_same_origin(self, method: str, headers: Mapping[str, str]) -> bool:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if origin is not None and not self._is_own_origin(origin):
            return False
        if site in ("same-origin", "none"):
            return method in _SAFE or site == "same-origin"
        if site is not None:  # a link on another site may open a page, but not embed or read it
            is_opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            return method in _SAFE and is_opened
        return method in _SAFE or origin is not None

    def _is_own_origin(self, origin: str) -> bool:
        return origin.startswith("http://") and self.is_own_host(origin.removeprefix("http://"))

    def has_access(self, headers: Mapping[str, str]) -> bool:
        """Whether a request carries the cookie; True if no cookie is needed."""
        if self.access_token is None:
            return True
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and same(found.value, self.access_token)

    def is_own_form(self, token: str) -> bool:
        """Whether a form comes from one of this server's own pages."""
        return same(token, self.form_token)


class GuardedApp:
    """An app that answers only the requests that its guard allows."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        answer = self._refusal(scope, headers)
        if answer is not None:
            await answer(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        if problem := self._guard.problem(scope, headers):
            status, reason = problem
            return PlainTextResponse(f"{reason}\n", status)
        if self._guard.has_access(headers):
            return None
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token", "")
        if scope["method"] == "GET" and same(given, self._guard.access_token or ""):
            return self._welcome()
        return PlainTextResponse("Open the address that `pairmill explore` printed: it contains the token.\n", 401)

    def _welcome(self) -> Response:
        """A page that sets the cookie and then opens the first page. A redirect would not do: if a link on another site
        led here, browsers would not send a strict cookie with the redirected request."""
        page = '<!doctype html><html lang="en"><title>pairmill</title><meta http-equiv="refresh" content="0;url=/">'
        response = HTMLResponse(f'{page}<p><a href="/">Open the dataset</a>')
        token = self._guard.access_token or ""
        response.set_cookie(self._guard.cookie, token, httponly=True, samesite="strict", path="/")
        return response


def same(given: str, expected: str) -> bool:
    """Compare two tokens in constant time. An empty token never matches."""
    return bool(expected) and hmac.compare_digest(given.encode(), expected.encode())


@functools.cache
def _own_names() -> tuple[str, str]:
    """The names of this machine. Cached, because the second name can need a slow request to a name server."""
    return socket.gethostname().lower(), socket.getfqdn().lower()


def _is_unspecified(host: str) -> bool:
    """Whether a server bound to this address answers on all addresses of the machine."""
    return _is_literal(host) and ipaddress.ip_address(host.strip("[]")).is_unspecified


def _is_literal(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
