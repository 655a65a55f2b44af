"""Invariant: however many addresses a name has, a request opens few sockets, and has none once it is done."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairmill.pipeline.fetch.byte_budget import ByteBudget
from pairmill.pipeline.fetch.fetch_url import Fetcher
from pairmill.pipeline.fetch.outcome import FetchOutcome
from pairmill.pipeline.fetch.resolver import GuardedResolver
from pairmill.schemas.status import Status
from tests.integration.test_fetch import JPEG, config
from tests.integration.web import HostileWeb

_REQUESTS = 10
_PER_REQUEST = 4


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that accepts no connections on any loopback address, because its queue is full."""
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen(0)
        port: int = listening.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        yield port
        for each in waiting:
            each.close()


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def fetch(urls: list[str], addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[list[FetchOutcome], int]:
    """Fetch while every name has these addresses. Returns (the outcomes, the peak number of newly opened files)."""

    async def look_up(self: GuardedResolver, name: str) -> list[str]:
        return addresses

    async def main() -> tuple[list[FetchOutcome], int]:
        async with Fetcher(
            config(timeout_s=3.0, connect_timeout_s=1.5, retries=0, per_host_concurrency=_REQUESTS), ByteBudget(1 << 28)
        ) as fetcher:
            before, most = _open_files(), 0
            tasks = [asyncio.create_task(fetcher.fetch(url)) for url in urls]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.05)
                most = max(most, _open_files() - before)
        return [task.result() for task in tasks], most

    monkeypatch.setattr(GuardedResolver, "resolve", look_up)
    return asyncio.run(main())


def test_a_name_with_many_silent_addresses_takes_few_sockets(black_hole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [f"127.0.{number // 250}.{number % 250 + 1}" for number in range(500)]
    before = _open_files()
    urls = [f"http://silent{number}.example:{black_hole}/" for number in range(_REQUESTS)]
    found, most = fetch(urls, silent, monkeypatch)
    assert {each.status for each in found} == {Status.TIMEOUT}
    assert _REQUESTS <= most <= _REQUESTS * _PER_REQUEST
    assert _open_files() < before + _REQUESTS  # c-ares closes its own few files later


@pytest.mark.parametrize(
    "dead",
    [["::1"] * 9, ["127.0.0.77"] * 9, ["127.0.0.77", "127.0.0.78", "127.0.0.79"], [f"fc00::{n}" for n in range(1, 9)]],
)
def test_a_live_address_after_dead_ones_is_found(dead: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with HostileWeb() as web:
        port = int(web.serve("/a.jpg", JPEG).rsplit(":", 1)[1].partition("/")[0])
        found, _ = fetch([f"http://name.example:{port}/a.jpg"], [*dead, "127.0.0.1"], monkeypatch)
    assert [each.status for each in found] == [Status.OK]
