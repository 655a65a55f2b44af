"""Tests which connections are kept between requests, using socket pairs."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from pairmill.pipeline.fetch import http_client
from pairmill.pipeline.fetch.http_client import _IdleConnections
from pairmill.pipeline.fetch.http_connection import HttpConnection

Open = Callable[[], Awaitable[tuple[HttpConnection, socket.socket]]]


def run(check: Callable[[Open], Awaitable[None]]) -> None:
    """Run a check, which can open connections and get the server's end of each. Closes all of them afterward."""
    pairs: list[tuple[HttpConnection, socket.socket]] = []

    async def opened() -> tuple[HttpConnection, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        pairs.append((await HttpConnection.over(ours, None, ""), theirs))
        return pairs[-1]

    async def checked() -> None:
        try:
            await check(opened)
        finally:
            for connection, server in pairs:
                connection.abort()
                server.close()
            await asyncio.sleep(0)

    asyncio.run(checked())


def test_the_most_recent_connection_to_an_origin_is_reused_first() -> None:
    async def check(opened: Open) -> None:
        idle = _IdleConnections()
        (first, _), (second, _), (other, _) = [await opened() for _ in range(3)]
        idle.keep("http://a", first)
        idle.keep("http://b", other)
        idle.keep("http://a", second)
        assert [idle.take("http://a") for _ in range(3)] == [second, first, None]
        assert idle.take("http://b") is other

    run(check)


def test_with_too_many_idle_connections_the_oldest_is_closed() -> None:
    async def check(opened: Open) -> None:
        idle = _IdleConnections()
        connections = [(await opened())[0] for _ in range(3)]
        for number, connection in enumerate(connections):
            idle.keep(f"http://{number}", connection)
        idle.trim(2)
        assert [connection.is_open for connection in connections] == [False, True, True]
        assert idle.take("http://0") is None
        assert idle.take("http://2") is connections[2]

    run(check)


def test_an_idle_connection_is_closed_after_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_KEEP_ALIVE_S", 0.1)

    async def check(opened: Open) -> None:
        idle = _IdleConnections()
        (first, _), (second, _) = [await opened() for _ in range(2)]
        idle.keep("http://a", first)
        await asyncio.sleep(0.06)
        idle.keep("http://a", second)
        await asyncio.sleep(0.06)
        assert (first.is_open, second.is_open) == (False, True)
        await asyncio.sleep(0.1)
        assert not second.is_open
        assert idle.take("http://a") is None

    run(check)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_connection_that_the_server_closed_or_wrote_to_is_not_reused(is_known: bool) -> None:
    async def check(opened: Open) -> None:
        idle = _IdleConnections()
        (closed, its_server), (chatty, its_other), (good, _) = [await opened() for _ in range(3)]
        for connection in (good, closed, chatty):
            idle.keep("http://a", connection)
        its_server.close()
        its_other.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        if is_known:
            await asyncio.sleep(0.01)  # gives the event loop time to see it
        assert idle.take("http://a") is good
        assert idle.take("http://a") is None

    run(check)
