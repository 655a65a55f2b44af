"""Invariant: whatever some hosts send before a response, the rows of other hosts take about as long as usual."""

import asyncio
import time
from dataclasses import dataclass

import pytest
from hypothesis import settings

from pairmill.pipeline.fetch.byte_budget import ByteBudget
from pairmill.pipeline.fetch.fetch_url import Fetcher
from pairmill.pipeline.fetch.outcome import FetchOutcome
from pairmill.pipeline.fetch.url_join import interleave_hosts
from pairmill.schemas.status import Status
from tests.integration.flood import KINDS, PICTURE, flooding
from tests.integration.test_fetch import config

_ROWS = min(2 * settings.default.max_examples, 1_000)
_TIMEOUT_S = 4.0
_NOISE_S = 1.0  # the delay that other tests on the machine can cause


@dataclass
class Run:
    """The results for one set of URLs."""

    outcomes: dict[str, FetchOutcome]
    wall_s: float


def fetch_together(urls: list[str]) -> Run:
    """Fetch as the download stage does: all URLs of a shard at once, with hosts interleaved."""

    async def main() -> Run:
        budget, outcomes = ByteBudget(1 << 28), dict[str, FetchOutcome]()
        async with Fetcher(
            config(timeout_s=_TIMEOUT_S, connect_timeout_s=_TIMEOUT_S / 3, retries=1), budget
        ) as fetcher:

            async def fetch_one(url: str) -> None:
                outcomes[url] = outcome = await fetcher.fetch(url)
                budget.release_decoded(len(outcome.body or b""))

            started = time.monotonic()
            await asyncio.gather(*(fetch_one(url) for url in interleave_hosts(urls)))
            return Run(outcomes, time.monotonic() - started)

    return asyncio.run(main())


@pytest.mark.parametrize("num_hosts", [8, 120])
def test_rows_beside_hostile_ones_are_all_fetched_in_time(num_hosts: int) -> None:
    with flooding(range(200, 240)) as good, flooding(range(num_hosts)) as bad:
        wanted = [good.url("good", row) for row in range(_ROWS)]
        hostile = [bad.url(KINDS[row % len(KINDS)], row) for row in range(_ROWS)]
        alone = fetch_together(wanted)
        together = fetch_together([url for pair in zip(hostile, wanted, strict=True) for url in pair])
    for run in (alone, together):
        assert {(run.outcomes[url].status, run.outcomes[url].body == PICTURE) for url in wanted} == {(Status.OK, True)}
    slowest, slowest_alone = (max(run.outcomes[url].fetch_s or 0.0 for url in wanted) for run in (together, alone))
    assert slowest <= 3 * slowest_alone + _NOISE_S
    assert together.wall_s <= 2 * _TIMEOUT_S
    assert {together.outcomes[url].status for url in hostile} == {Status.TIMEOUT, Status.PROTOCOL_ERROR}


def test_each_kind_of_hostile_response_ends_with_its_status_at_little_cost() -> None:
    with flooding(range(len(KINDS))) as bad:
        urls = {kind: bad.url(kind, row) for row, kind in enumerate(KINDS)}
        started = time.process_time()
        found = fetch_together(list(urls.values())).outcomes
        assert time.process_time() - started < 2.0  # CPU time of this process
    endless = {"interim", "early-hints", "fields", "line", "chunks", "trailers"}
    for kind, url in urls.items():
        assert found[url].status is (Status.PROTOCOL_ERROR if kind in endless else Status.TIMEOUT), kind
