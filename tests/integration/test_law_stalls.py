"""Invariant: if this machine stalls, no row gets the status `timeout`, nor any other status that blames the server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairmill.pipeline.fetch.byte_budget import ByteBudget
from pairmill.pipeline.fetch.fetch_url import Fetcher
from pairmill.pipeline.fetch.outcome import FetchOutcome
from pairmill.pipeline.fetch.stall_monitor import StallMonitor
from pairmill.schemas.status import Status
from tests.integration.test_fetch import JPEG, config
from tests.integration.web import HostileWeb, Request, response


@pytest.fixture
def web() -> Iterator[HostileWeb]:
    with HostileWeb() as web:
        yield web


def fetch_and_stand_still(urls: list[str], stall_s: float, **settings: Any) -> list[FetchOutcome]:
    """Fetch, and block the event loop once all requests have been sent."""

    async def main() -> list[FetchOutcome]:
        async with Fetcher(config(**settings), ByteBudget(1 << 28)) as fetcher:
            tasks = [asyncio.create_task(fetcher.fetch(url)) for url in urls]
            await asyncio.sleep(0.4)
            time.sleep(stall_s)  # noqa: ASYNC251
            return await asyncio.gather(*tasks)

    return asyncio.run(main())


def test_deadlines_do_not_pass_while_the_loop_stalls(web: HostileWeb) -> None:
    urls = [web.send(f"/{n}.jpg", 0.5 + n / 20, response(JPEG)) for n in range(8)]
    found = fetch_and_stand_still(urls, 3.0, timeout_s=1.5, retries=0)
    assert [each.status for each in found] == [Status.OK] * 8
    assert all((each.fetch_s or 0) < 1.5 for each in found)


def test_requests_that_servers_gave_up_on_during_a_stall_are_repeated(web: HostileWeb) -> None:
    async def impatient(request: Request, writer: Any) -> None:
        writer.write(response(JPEG, length=len(JPEG) + 4)[: -len(JPEG) // 2])
        if web.hits[request.path] == 1:
            await asyncio.sleep(1.0)
            writer.close()
            return
        writer.write(response(JPEG, length=len(JPEG) + 4)[-len(JPEG) // 2 :] + b"more")

    async def closes_silently(request: Request, writer: Any) -> None:
        if web.hits[request.path] > 1:
            writer.write(response(JPEG))
            return
        await asyncio.sleep(1.0)
        writer.close()

    urls = [web.route("/within.jpg", impatient), web.route("/before.jpg", closes_silently)]
    found = fetch_and_stand_still(urls, 2.5, timeout_s=2, retries=0)
    assert [each.status for each in found] == [Status.OK] * 2


def test_hosts_that_never_answer_still_time_out_despite_a_stall(web: HostileWeb) -> None:
    urls = [web.send(f"/{n}.jpg", 60.0) for n in range(3)]
    started = time.monotonic()
    found = fetch_and_stand_still(urls, 2.0, timeout_s=1, retries=0)
    assert [each.status for each in found] == [Status.TIMEOUT] * 3
    assert time.monotonic() - started < 8


def test_a_lookup_that_failed_during_a_stall_is_repeated() -> None:
    async def main() -> int:
        stalls, attempts = StallMonitor(), 0

        async def look_up() -> int:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                time.sleep(1.6)  # noqa: ASYNC251
            if attempts < 3:
                raise OSError("no answer")
            return attempts

        with pytest.raises(OSError, match="no answer"):
            await stalls.repeat_if_stalled(look_up, OSError)  # only the lookup that failed during the stall is repeated
        stalls.close()
        return attempts

    assert asyncio.run(main()) == 2


_CHILD = """
import json, sys
from tests.integration.test_fetch import fetch_all
print("ready", flush=True)
found = fetch_all(json.loads(sys.argv[1]), timeout_s=2.0, retries=0)
print(json.dumps([each.status.value for each in found]))
"""


@pytest.mark.parametrize("stop_s", [30.0 if "DOORS_EXAMPLES" in os.environ else 5.0])
def test_a_process_that_is_stopped_loses_no_row(web: HostileWeb, stop_s: float) -> None:
    """SIGSTOP and SIGCONT have the effect of a frozen container or a paused virtual machine."""
    urls = [web.send(f"/{n}.jpg", n / 10, response(JPEG)) for n in range(20)]
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(urls)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    while not web.hits:
        time.sleep(0.01)
    time.sleep(0.4)
    child.send_signal(signal.SIGSTOP)
    time.sleep(stop_s)
    child.send_signal(signal.SIGCONT)
    output, _ = child.communicate(timeout=60)
    assert json.loads(output) == ["ok"] * 20
