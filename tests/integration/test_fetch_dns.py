"""Tests host names: custom name servers, the responses that they can send, and the address check on connecting."""

from collections.abc import Iterator

import pytest

from pairmill.pipeline.fetch import dns
from pairmill.schemas.status import Status
from tests.integration.name_server import NameServer
from tests.integration.test_fetch import JPEG, fetch, fetch_all
from tests.integration.web import HostileWeb


@pytest.fixture
def web() -> Iterator[HostileWeb]:
    with HostileWeb() as web:
        web.serve("/a.jpg", JPEG)
        yield web


def test_lookups_go_to_the_jobs_name_servers(web: HostileWeb) -> None:
    with NameServer({"pictures.example": [["127.0.0.1"]]}) as server:
        urls = [web.url(f"/a.jpg?{number}", host="pictures.example") for number in range(20)]
        found = fetch_all([*urls, web.url("/a.jpg", host="nobody.example")], nameservers=[server.address])
        assert [fetched.status for fetched in found] == [Status.OK] * 20 + [Status.DNS_ERROR]
        assert server.queries == {"pictures.example": 1}


def test_a_name_whose_address_turns_private_between_lookups_is_refused(
    web: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is an allowed address, the second is not."""
    monkeypatch.setattr(dns, "_TTL_S", 0.0)  # every request looks the name up again
    with HostileWeb("127.0.0.2") as private, NameServer({"turncoat.example": [["127.0.0.1"], ["127.0.0.2"]]}) as server:
        private.serve("/a.jpg", JPEG)
        settings = {"allow_networks": ["127.0.0.1/32"], "nameservers": [server.address], "per_host_concurrency": 1}
        first, second = (fetch(web.url("/a.jpg", host="turncoat.example"), **settings) for _ in range(2))
        third = fetch(private.url("/a.jpg").replace("127.0.0.2", "turncoat.example"), **settings)
        assert first.status is Status.OK
        assert second.status is third.status is Status.ADDRESS_REFUSED
        assert private.connections == 0


def test_only_the_allowed_addresses_of_a_name_are_connected_to(web: HostileWeb) -> None:
    with HostileWeb("127.0.0.2") as private, NameServer({"both.example": [["127.0.0.2", "127.0.0.1"]]}) as server:
        settings = {"allow_networks": ["127.0.0.1/32"], "nameservers": [server.address]}
        assert fetch(web.url("/a.jpg", host="both.example"), **settings).status is Status.OK
        assert private.connections == 0


@pytest.mark.parametrize("addresses", [[], [[]]])
def test_a_name_without_a_response_or_an_address_is_a_dns_error(web: HostileWeb, addresses: list[list[str]]) -> None:
    with NameServer({"empty.example": addresses}) as server:
        fetched = fetch(web.url("/a.jpg", host="empty.example"), nameservers=[server.address], timeout_s=2)
        assert fetched.status is Status.DNS_ERROR
        assert "empty.example" in (fetched.detail or "")


def test_rows_lose_no_time_to_hundreds_of_names_whose_name_servers_are_silent(web: HostileWeb) -> None:
    """They wait until their own names are looked up, with their clocks stopped."""
    silent: dict[str, list[list[str]]] = {f"silent{number}.example": [] for number in range(400)}
    good = {f"good{number}.example": [["127.0.0.1"]] for number in range(20)}
    with NameServer(silent | good) as server:
        urls = [web.url("/a.jpg", host=name) for name in server.addresses]
        found = fetch_all(urls, nameservers=[server.address], timeout_s=1)
    assert [fetched.status for fetched in found] == [Status.DNS_ERROR] * 400 + [Status.OK] * 20


def test_a_name_that_does_not_exist_is_not_looked_up_in_the_machines_own_domains(
    web: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one of these answers for all names, a dead link would lead to a host of ours (c-ares#1268). Only lists of a
    private network can mean it, and the job has to allow such a network."""
    monkeypatch.setenv("LOCALDOMAIN", "corp.test")
    inside = {f"{name}.corp.test": [["127.0.0.1"]] for name in ("dead.example", "pictures")}
    for networks, status in (([], Status.DNS_ERROR), (["127.0.0.0/8"], Status.OK)):
        with NameServer(inside) as server:
            settings = {"allow_networks": networks, "nameservers": [server.address]}
            urls = [web.url("/a.jpg", host=name) for name in ("dead.example", "pictures")]
            assert [fetched.status for fetched in fetch_all(urls, **settings)] == [status] * 2


def test_a_name_that_exists_precedes_those_in_the_machines_own_domains(
    web: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Kubernetes, `ndots:5` makes other resolvers ask for almost all names in the cluster's domains first."""
    monkeypatch.setenv("LOCALDOMAIN", "corp.test")
    monkeypatch.setenv("RES_OPTIONS", "ndots:5")
    names = {"pictures.example": [["127.0.0.1"]], "pictures.example.corp.test": [["127.0.0.2"]]}
    with NameServer(names) as server:
        fetched = fetch(web.url("/a.jpg", host="pictures.example"), nameservers=[server.address])
        assert fetched.status is Status.OK
        assert server.queries == {"pictures.example": 1}
