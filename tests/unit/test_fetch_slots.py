"""Turns, clocks, budgets and the memory of look-ups."""

import asyncio
from collections.abc import Sequence

import pytest

from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.dns import AddressRefused, HostNames, NoSuchHost
from pairmill.pipeline.fetch.slots import ByteBudget, Deadline, HostSlots, Share


def test_slots_per_host_and_in_all() -> None:
    async def main() -> None:
        slots = HostSlots(per_host=2, total=3)
        now: dict[str, int] = {"a": 0, "b": 0}
        most = {"a": 0, "b": 0, "all": 0}

        async def one(host: str) -> None:
            async with slots.hold(host):
                now[host] += 1
                most[host] = max(most[host], now[host])
                most["all"] = max(most["all"], sum(now.values()))
                await asyncio.sleep(0.002)
                now[host] -= 1

        await asyncio.gather(*(one("ab"[index % 2]) for index in range(20)))
        assert most == {"a": 2, "b": 2, "all": 3}
        assert slots._hosts == {}  # nobody left: no memory of hosts

    asyncio.run(main())


def test_a_queue_for_one_host_leaves_the_others_alone() -> None:
    async def main() -> None:
        slots = HostSlots(per_host=1, total=2)
        stop = asyncio.Event()

        async def wait_there() -> None:
            async with slots.hold("slow"):
                await stop.wait()

        waiting = [asyncio.create_task(wait_there()) for _ in range(5)]
        await asyncio.sleep(0)
        assert slots.would_wait("slow")
        assert not slots.would_wait("quick")
        async with asyncio.timeout(1), slots.hold("quick"):
            assert slots.would_wait("third")
        stop.set()
        await asyncio.gather(*waiting)

    asyncio.run(main())


def test_giving_up_while_waiting_leaves_nothing_behind() -> None:
    async def main() -> None:
        slots = HostSlots(per_host=1, total=1)
        async with slots.hold("a"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), slots.hold("a"):
                    pass
        async with slots.hold("a"):
            pass
        assert slots._hosts == {}

    asyncio.run(main())


def test_a_paused_clock_stands_still() -> None:
    async def main() -> None:
        deadline = Deadline(5)
        async with deadline:
            deadline.pause()
            await asyncio.sleep(0.5)
            deadline.resume()
            assert deadline.left == pytest.approx(5, abs=0.4)
            assert not deadline.expired
        with pytest.raises(TimeoutError):
            async with (again := Deadline(0.02)):
                await asyncio.sleep(5)
        assert again.expired

    asyncio.run(main())


def test_a_full_budget_holds_back_until_there_is_room() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        await budget.wait_for_room()
        budget.take(12)
        assert budget.is_full
        waiting = asyncio.create_task(budget.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        budget.give_back(12)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(main())


def test_beyond_twice_the_budget_one_at_a_time_goes_on_and_the_others_clocks_stand_still() -> None:
    async def main() -> None:
        budget, order, most = ByteBudget(10), list[str](), list[int]()

        async def body(name: str, steps: int) -> None:
            async with Deadline(0.5) as deadline:
                share = Share(budget, deadline)
                for n in range(1, steps + 1):
                    await share.hold(8 * n)
                    most.append(budget._held)
                    await asyncio.sleep(0.1)
                share.let_go()
                order.append(name)

        async with asyncio.TaskGroup() as group:
            for name in "abcd":
                group.create_task(body(name, 4))
        assert sorted(order) == list("abcd")
        assert budget._held == 0
        assert max(most) <= 2 * 10 + 8 + 4 * 8  # a step that began below, and one body

    asyncio.run(main())


def test_who_goes_on_beyond_the_budget_holds_nobody_up_once_there_is_room() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        async with Deadline(60) as deadline:
            slow, other, third = (Share(budget, deadline) for _ in range(3))
            budget.take(20)
            await slow.hold(8)  # goes on alone
            waiting = [asyncio.create_task(share.hold(8)) for share in (other, third)]
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            budget.give_back(20)  # the slow one is not done
            await asyncio.wait_for(asyncio.gather(*waiting), 1)

    asyncio.run(main())


class Names:
    """A name service that counts."""

    def __init__(self, answers: dict[str, Sequence[str] | OSError]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def look_up(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        await asyncio.sleep(0.01)
        answer = self.answers[name]
        if isinstance(answer, OSError):
            raise answer
        return answer


def test_one_look_up_for_all_who_ask_and_failures_are_remembered() -> None:
    async def main() -> None:
        service = Names({"dead": NoSuchHost("dead: not found"), "good": ["8.8.8.8"], "slow": OSError("no answer")})
        names = HostNames(service.look_up, AddressGuard())
        for name, kind in (("dead", NoSuchHost), ("slow", OSError)):
            found = await asyncio.gather(*(names.addresses(name) for _ in range(500)), return_exceptions=True)
            assert {type(item) for item in found} == {kind}
            with pytest.raises(kind):
                await names.addresses(name)
        assert await asyncio.gather(*(names.addresses("good") for _ in range(500))) == [["8.8.8.8"]] * 500
        assert await names.addresses("good") == ["8.8.8.8"]
        assert service.asked == ["dead", "slow", "good"]

    asyncio.run(main())


def test_private_addresses_are_left_out() -> None:
    async def main() -> None:
        service = Names({"mixed": ["10.0.0.1", "8.8.8.8", "::1"], "inside": ["127.0.0.1", "::1"]})
        names = HostNames(service.look_up, AddressGuard())
        assert await names.addresses("mixed") == ["8.8.8.8"]
        with pytest.raises(AddressRefused, match=r"127\.0\.0\.1"):
            await names.addresses("inside")

    asyncio.run(main())


def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    async def main() -> None:
        service = Names({"good": ["8.8.8.8"]})
        names = HostNames(service.look_up, AddressGuard())
        first = asyncio.create_task(names.addresses("good"))
        second = asyncio.create_task(names.addresses("good"))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == ["8.8.8.8"]
        assert service.asked == ["good"]
        await names.close()

    asyncio.run(main())
