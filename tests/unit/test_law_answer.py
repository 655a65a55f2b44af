"""Invariant: the verdict on a response depends on its bytes, not on how the network splits them."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.url_parser import HttpUrl
from pairmill.pipeline.fetch.byte_budget import ByteBudget
from pairmill.pipeline.fetch.deadline import Deadline
from pairmill.pipeline.fetch.fetch_url import Fetcher
from pairmill.pipeline.fetch.http_connection import HttpConnection
from pairmill.pipeline.fetch.outcome import FetchOutcome
from pairmill.schemas.job.fetch import FetchConfig
from pairmill.schemas.status import Status
from tests.http_answers import ANSWERS, PICTURE


class _Server(asyncio.Transport):
    """Responds to the request in pieces, one per turn of the event loop, and closes the connection."""

    def __init__(self, connection: HttpConnection, pieces: Sequence[bytes]) -> None:
        super().__init__()
        self._connection = connection
        self._pieces = list(pieces)
        self._closing = False
        connection.connection_made(self)

    def write(self, data: Any) -> None:
        asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        if self._closing:
            return
        if self._pieces:
            self._connection.data_received(self._pieces.pop(0))
            asyncio.get_running_loop().call_soon(self._send)
        else:
            self._connection.eof_received()
            self.abort()

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def verdicts(answer: bytes, cuts: Sequence[Sequence[int]], max_bytes: int = 1_000_000) -> list[FetchOutcome]:
    """The outcomes of fetching a response: one outcome for each list of positions at which the response is split."""

    async def main() -> list[FetchOutcome]:
        config = FetchConfig(retries=0, timeout_s=60, max_bytes=max_bytes)
        async with Fetcher(config, ByteBudget(1 << 28)) as fetcher:
            found = []
            for number, positions in enumerate(cuts):
                ends = [*sorted(positions), len(answer)]
                pieces = [answer[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]

                async def connect(_: HttpUrl, _deadline: Deadline, pieces: list[bytes] = pieces) -> HttpConnection:
                    connection = HttpConnection()
                    _Server(connection, pieces)
                    return connection

                cast(Any, fetcher._client)._connect = connect
                found.append(await fetcher.fetch(f"http://host-{number}.example/a.jpg"))
            return found

    return asyncio.run(main())


def _essence(outcome: FetchOutcome) -> tuple[object, ...]:
    return outcome.status, outcome.detail, outcome.http_status, outcome.body


@pytest.mark.parametrize("name", ANSWERS)
def test_splitting_a_response_at_any_position_changes_nothing(name: str) -> None:
    answer = ANSWERS[name]
    size = len(answer.bytes)
    middle = range(60, size - 60, max(331, size // 50))
    positions = range(size) if size < 500 else [*range(60), *middle, *range(size - 60, size)]
    ways: list[Sequence[int]] = [[position] for position in positions]
    whole, *cut, by_byte = map(_essence, verdicts(answer.bytes, [[], *ways, range(size) if size < 4_000 else []]))
    assert whole[0] is answer.status, whole
    assert whole[3] == (PICTURE if answer.status == "ok" else None)
    assert {*cut, by_byte} == {whole}


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_redirect_counts_once_its_last_line_is_complete(end: bytes) -> None:
    start = b"HTTP/1.1 302 Found" + end + b"Location: /a.jpg"
    for rest in (end + end, end, end + end[:1]):
        for found in verdicts(start + rest, [[], range(60)]):
            assert (found.status, found.http_status) == (Status.BAD_REDIRECT, 302), rest  # a loop, so it was followed
    for cut in range(len(start) + 1):
        (found,) = verdicts(start[:cut], [[]])
        assert found.status is Status.CONNECTION_LOST, cut
    for head in (b"HTTP/1.1 302 Found\r\n", b"HTTP/1.1 200 OK\r\nLocation: /a.jpg\r\n"):
        (found,) = verdicts(head, [[]])
        assert found.status is Status.CONNECTION_LOST


@settings(max_examples=max(settings.default.max_examples // 4, 1))
@given(st.data())
def test_splitting_a_damaged_response_changes_nothing(data: st.DataObject) -> None:
    """If part of a response is replaced, removed or duplicated, the verdict does not depend on the splits either."""
    answer = bytearray(data.draw(st.sampled_from([each.bytes[:2_000] for each in ANSWERS.values() if each.bytes])))
    start = data.draw(st.integers(0, len(answer) - 1))
    end = data.draw(st.integers(start, min(start + 20, len(answer))))
    answer[start:end] = data.draw(
        st.sampled_from([b"", b"\r\n", b"\n", b"0", b"\0", b":", bytes(answer[start:end]) * 2])
    )
    answer *= 1 + 500 * data.draw(st.booleans())  # extra responses, and endless lines
    positions = st.lists(st.integers(0, min(len(answer), 3_000)), max_size=12)
    cuts = [[], *data.draw(st.lists(positions, min_size=1, max_size=6))]
    limit = data.draw(st.sampled_from([1_000, 1_000_000]))
    whole, *cut = map(_essence, verdicts(bytes(answer), cuts, limit))
    assert set(cut) == {whole}
