"""Tests the fetcher's limits: requests per host, deadlines, bytes in memory."""

import asyncio
import subprocess
import sys
from contextlib import nullcontext

import pytest

from pairmill.pipeline.fetch import byte_budget
from pairmill.pipeline.fetch.byte_budget import ByteBudget, Reservation
from pairmill.pipeline.fetch.circuit_breaker import CircuitBreaker
from pairmill.pipeline.fetch.deadline import Deadline
from pairmill.pipeline.fetch.host_limiter import HostLimiter
from pairmill.pipeline.fetch.outcome import FetchError


def test_requests_are_limited_per_host_and_in_total() -> None:
    async def main() -> None:
        limiter = HostLimiter(per_host=2, total=3)
        running: dict[str, int] = {"a": 0, "b": 0}
        most = {"a": 0, "b": 0, "all": 0}

        async def request(host: str) -> None:
            async with limiter.acquire(host):
                running[host] += 1
                most[host] = max(most[host], running[host])
                most["all"] = max(most["all"], sum(running.values()))
                await asyncio.sleep(0.002)
                running[host] -= 1

        await asyncio.gather(*(request("ab"[index % 2]) for index in range(20)))
        assert most == {"a": 2, "b": 2, "all": 3}
        assert limiter._hosts == {}  # hosts without requests take no memory

    asyncio.run(main())


def test_a_queue_for_one_host_does_not_block_the_others() -> None:
    async def main() -> None:
        limiter = HostLimiter(per_host=1, total=2)
        stop = asyncio.Event()

        async def wait_for_slow_host() -> None:
            async with limiter.acquire("slow"):
                await stop.wait()

        waiting = [asyncio.create_task(wait_for_slow_host()) for _ in range(5)]
        await asyncio.sleep(0)
        assert limiter.would_wait("slow")
        assert not limiter.would_wait("quick")
        async with asyncio.timeout(1), limiter.acquire("quick"):
            assert limiter.would_wait("third")
        stop.set()
        await asyncio.gather(*waiting)

    asyncio.run(main())


def test_a_request_that_need_not_wait_starts_at_once_even_if_starts_are_spaced() -> None:
    """Its clock is only stopped if it has to wait."""

    async def main() -> None:
        limiter = HostLimiter(per_host=1, total=1, interval_s=60)
        must_wait, running, stop = dict[str, bool](), list[str](), asyncio.Event()

        async def request(host: str) -> None:
            must_wait[host] = limiter.would_wait(host)
            async with limiter.acquire(host):
                running.append(host)
                await stop.wait()

        tasks = [asyncio.create_task(request(host)) for host in "ab"]
        await asyncio.sleep(0)
        assert (must_wait, running) == ({"a": False, "b": True}, ["a"])
        stop.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_waiter_that_times_out_leaves_nothing_behind() -> None:
    async def main() -> None:
        limiter = HostLimiter(per_host=1, total=1)
        async with limiter.acquire("a"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), limiter.acquire("a"):
                    pass
        async with limiter.acquire("a"):
            pass
        assert limiter._hosts == {}

    asyncio.run(main())


def test_a_paused_deadline_does_not_expire() -> None:
    async def main() -> None:
        deadline = Deadline(5)
        async with deadline:
            with deadline.paused():
                await asyncio.sleep(0.5)
            assert deadline.remaining_s == pytest.approx(5, abs=0.4)
            assert not deadline.expired
        with pytest.raises(TimeoutError):
            async with (again := Deadline(0.02)):
                await asyncio.sleep(5)
        assert again.expired

    asyncio.run(main())


@pytest.mark.parametrize("paused_s", [0.0, 0.1])
def test_a_timeout_counts_against_a_host_only_if_the_clock_ran_long_enough(paused_s: float) -> None:
    async def main() -> None:
        breaker = CircuitBreaker(1, min_wait_s=0.1, stalled_since=lambda _: False)
        with pytest.raises(TimeoutError):
            async with Deadline(0.15 - paused_s) as deadline, breaker.track("host", deadline):
                with deadline.paused():
                    await asyncio.sleep(paused_s)
                await asyncio.sleep(60)
        async with Deadline(60) as deadline:
            with (
                nullcontext() if paused_s else pytest.raises(FetchError, match="the last 1 requests to host timed out")
            ):
                async with breaker.track("host", deadline):
                    pass

    asyncio.run(main())


def test_requests_wait_for_a_full_budget_and_start_in_order_as_far_as_there_is_room() -> None:
    async def main() -> None:
        budget, started = ByteBudget(10), list[int]()

        async def start(number: int) -> None:
            await budget.reserve_to_start(4)
            started.append(number)

        budget.reserve(20)
        waiting = [asyncio.create_task(start(number)) for number in range(5)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        budget.release(9)
        await asyncio.sleep(0)
        assert started == [] and budget.is_full
        for room, expected in ((2, [0]), (4, [0, 2]), (8, [0, 2, 3, 4])):
            budget.release(room)
            await asyncio.sleep(0)
            assert started == expected
        assert budget._reserved == 20 - 9 - 2 - 4 - 8 + 4 * 4

    asyncio.run(main())


def test_a_download_that_begins_again_lets_other_bodies_grow() -> None:
    async def main() -> None:
        budget = ByteBudget(10, 20)
        async with Deadline(60) as deadline:
            broken, other = (Reservation(budget, deadline) for _ in range(2))
            budget.reserve(20)
            await broken.resize(8)  # only this one may grow
            waiting = asyncio.create_task(other.resize(8))
            await asyncio.sleep(0)
            await broken.resize(0)  # its next attempt waits until fewer than 10 bytes are reserved
            await asyncio.wait_for(waiting, 1)

    asyncio.run(main())


def test_bodies_in_flight_may_grow_far_beyond_the_limit_for_new_requests() -> None:
    async def main() -> None:
        budget = ByteBudget(10, 100)
        async with Deadline(60) as deadline:
            bodies = [Reservation(budget, deadline) for _ in range(9)]
            await asyncio.wait_for(asyncio.gather(*(body.resize(11) for body in bodies)), 1)
        assert budget.is_full

    asyncio.run(main())


def test_a_request_cancelled_when_its_turn_has_come_keeps_no_bytes() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        budget.reserve(10)
        waiting = [asyncio.create_task(budget.reserve_to_start(10)) for _ in range(2)]
        await asyncio.sleep(0)
        budget.release(10)
        waiting[0].cancel()
        await asyncio.wait_for(waiting[1], 1)
        assert budget._reserved == 10

    asyncio.run(main())


def test_above_twice_the_budget_bodies_grow_one_at_a_time_and_the_others_do_not_time_out() -> None:
    async def main() -> None:
        budget, order, most = ByteBudget(10), list[str](), list[int]()

        async def body(name: str, steps: int) -> None:
            async with Deadline(0.6) as deadline:
                reservation = Reservation(budget, deadline)
                for n in range(1, steps + 1):
                    await reservation.resize(8 * n)
                    most.append(budget._reserved)
                    await asyncio.sleep(0.05)
                reservation.hand_over()
            await asyncio.sleep(0.1)  # the decoder is busy
            budget.release_decoded(8 * steps)
            order.append(name)

        async with asyncio.TaskGroup() as group:
            for name in "abcd":
                group.create_task(body(name, 4))
        assert sorted(order) == list("abcd")
        assert budget._reserved == 0
        assert max(most) <= 2 * 10 + 8 + 4 * 8  # twice the budget, the step that crosses it, and one whole body

    asyncio.run(main())


@pytest.mark.parametrize("burst_bytes", [1, 5_000])
def test_slow_bodies_keep_neither_the_turn_to_grow_nor_more_memory_than_allowed(
    burst_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They begin with a burst, then send one byte at a time."""
    monkeypatch.setattr(byte_budget, "_TURN_S", 0.02)

    async def main() -> None:
        budget, most, whole_bytes = ByteBudget(10_000, 80_000), list[int](), 40_000

        async def body(burst_bytes: int, step_bytes: int, pause_s: float, timeout_s: float) -> None:
            async with Deadline(timeout_s) as deadline:
                reservation = Reservation(budget, deadline)
                try:
                    for num_bytes in range(burst_bytes, whole_bytes + 1, step_bytes):
                        await reservation.resize(num_bytes)
                        most.append(budget._reserved)
                        await asyncio.sleep(pause_s)
                finally:
                    reservation.release()

        budget.reserve(80_000)
        slow = [asyncio.create_task(body(burst_bytes, 1, 0.005, timeout_s=60)) for _ in range(4)]
        good = [asyncio.create_task(body(10_000, 10_000, 0.001, timeout_s=2)) for _ in range(20)]
        if burst_bytes == 1:
            await asyncio.wait_for(asyncio.gather(*good), 5)
        else:  # two such bursts are the eighth above the limit, so the second body keeps its turn
            await asyncio.sleep(0.2)
        for task in slow:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*good), 5)
        await asyncio.gather(*slow, return_exceptions=True)
        assert max(most) <= 80_000 * 9 / 8 + whole_bytes
        assert budget._reserved == 80_000

    asyncio.run(main())


def test_a_body_growing_above_the_budget_does_not_block_others_once_there_is_room() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        async with Deadline(60) as deadline:
            slow, other, third = (Reservation(budget, deadline) for _ in range(3))
            budget.reserve(20)
            await slow.resize(8)  # above twice the budget, only this reservation may grow
            waiting = [asyncio.create_task(reservation.resize(8)) for reservation in (other, third)]
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            budget.release(20)  # lets the others grow although `slow` is not done
            await asyncio.wait_for(asyncio.gather(*waiting), 1)

    asyncio.run(main())


FEW_FILES = """
import resource
from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.fetch.file_limit import raise_file_limit

for limit, concurrency in ((300, 44), (300, 45), (100, 1)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        raise_file_limit(concurrency)
    except LocalFault as error:
        print(error)
"""


def test_if_a_process_may_open_too_few_files_the_message_gives_only_remedies_that_work() -> None:
    """Lowering `fetch.concurrency` cannot help if the limit is too low for everything else."""
    done = subprocess.run([sys.executable, "-c", FEW_FILES], capture_output=True, text=True, check=True)
    some, none = done.stdout.splitlines()
    assert some.endswith("raise the limit (ulimit -n), or lower fetch.concurrency to 44")
    assert none.endswith("raise the limit (ulimit -n)")
