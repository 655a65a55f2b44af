"""Tests the cache of DNS lookups."""

import asyncio
from collections.abc import Sequence

import pytest

from pairmill.pipeline.fetch import dns
from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.dns import AddressRefused, DnsCache, NoSuchHost


class NameService:
    """Records the names that it is asked to look up."""

    def __init__(self, answers: dict[str, Sequence[str] | OSError]) -> None:
        self.answers = answers
        self.queries: list[str] = []

    async def look_up(self, name: str) -> Sequence[str]:
        self.queries.append(name)
        await asyncio.sleep(0.01)
        answer = self.answers[name]
        if isinstance(answer, OSError):
            raise answer
        return answer


def test_concurrent_callers_share_one_lookup_and_failures_are_cached() -> None:
    async def main() -> None:
        service = NameService(
            {"dead": NoSuchHost("dead: not found"), "good": ["8.8.8.8"], "slow": OSError("no answer")}
        )
        cache = DnsCache(service.look_up, AddressGuard())
        for name, kind in (("dead", NoSuchHost), ("slow", OSError)):
            found = await asyncio.gather(*(cache.resolve(name) for _ in range(500)), return_exceptions=True)
            assert {type(item) for item in found} == {kind}
            with pytest.raises(kind):
                await cache.resolve(name)
        assert await asyncio.gather(*(cache.resolve("good") for _ in range(500))) == [["8.8.8.8"]] * 500
        assert await cache.resolve("good") == ["8.8.8.8"]
        assert service.queries == ["dead", "slow", "good"]

    asyncio.run(main())


def test_private_addresses_are_dropped() -> None:
    async def main() -> None:
        service = NameService({"mixed": ["10.0.0.1", "8.8.8.8", "::1"], "inside": ["127.0.0.1", "::1"]})
        cache = DnsCache(service.look_up, AddressGuard())
        assert await cache.resolve("mixed") == ["8.8.8.8"]
        with pytest.raises(AddressRefused, match=r"127\.0\.0\.1"):
            await cache.resolve("inside")

    asyncio.run(main())


def test_a_caller_that_gives_up_does_not_cancel_the_lookup_for_the_others() -> None:
    async def main() -> None:
        service = NameService({"good": ["8.8.8.8"]})
        cache = DnsCache(service.look_up, AddressGuard())
        first = asyncio.create_task(cache.resolve("good"))
        second = asyncio.create_task(cache.resolve("good"))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == ["8.8.8.8"]
        assert service.queries == ["good"]
        await cache.close()

    asyncio.run(main())


def test_names_whose_name_servers_are_silent_do_not_delay_the_others_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "_SLOT_S", 0.01)

    async def look_up(name: str) -> Sequence[str]:
        if name.startswith("silent"):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return ["8.8.8.8"]

    async def main() -> None:
        cache = DnsCache(look_up, AddressGuard())
        names = [f"silent{number}" for number in range(600)] + [f"good{number}" for number in range(600)]
        found = [asyncio.create_task(cache.resolve(name)) for name in names]
        async with asyncio.timeout(5):
            assert await asyncio.gather(*found[600:]) == [["8.8.8.8"]] * 600
        assert not any(task.done() for task in found[:600])
        await cache.close()
        await asyncio.gather(*found, return_exceptions=True)
        assert cache._concurrency._value == dns._MAX_CONCURRENT_LOOKUPS  # each slot was released once

    asyncio.run(main())
