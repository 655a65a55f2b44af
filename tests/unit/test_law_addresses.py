"""Invariant: the guard agrees with IANA's special-purpose registries, however an address is spelled."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common.url_parser import parse_url
from pairmill.pipeline.fetch.addresses import AddressGuard, is_ipv4
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.fetch.urls import redirect_target, request_url
from pairmill.pipeline.rules import SourceRules
from pairmill.pipeline.rules.url import refused_redirect
from tests.addresses_spelled import spellings


def _blocks(text: str) -> list[str]:
    return text.split()


# According to the registries' "Globally Reachable" column, written here in a different form than in the guard.
NOT_REACHABLE = _blocks(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/29 192.0.0.8/32 "
    "192.0.0.170/31 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 "
    "240.0.0.0/4 ::1/128 ::/128 255.255.255.255/32 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/32 2001:2::/48 "
    "2001:10::/28 2001:db8::/32 3fff::/20 5f00::/16 fc00::/7 fe80::/10 224.0.0.0/4 ff00::/8 fec0::/10 "
    "168.63.129.16/32 2001:20::/28 2001:30::/28"
)
REACHABLE = _blocks(
    "192.0.0.9/32 192.0.0.10/32 192.31.196.0/24 192.52.193.0/24 192.175.48.0/24 2001:1::1/128 2001:1::2/128 "
    "2001:1::3/128 2001:3::/32 2001:4:112::/48 2620:4f:8000::/48 1.0.0.0/8 8.0.0.0/8 100.0.0.0/10 100.128.0.0/9 "
    "172.0.0.0/12 172.32.0.0/11 169.253.0.0/16 169.255.0.0/16 191.0.0.0/8 192.0.1.0/24 192.167.0.0/16 "
    "192.169.0.0/16 198.17.0.0/16 198.20.0.0/14 223.0.0.0/8 2001:200::/23 2001:4860::/32 2003::/16 2400::/12 "
    "2600::/12 2a00::/12 3ffe::/16"
)


def ends(block: str) -> list[str]:
    network = ipaddress.ip_network(block)
    return [str(network[0]), str(network[network.num_addresses // 2]), str(network[-1])]


@pytest.mark.parametrize("block", NOT_REACHABLE)
def test_blocks_that_are_not_globally_reachable_are_refused_from_end_to_end(block: str) -> None:
    assert all(AddressGuard().refusal(address) for address in ends(block)), block


@pytest.mark.parametrize("block", REACHABLE)
def test_globally_reachable_blocks_are_allowed_from_end_to_end(block: str) -> None:
    assert [AddressGuard().refusal(address) for address in ends(block)] == [None, None, None]


# Blocks in which Python 3.11 to 3.14 disagree with the current registries, with each other, or with actual routing.
_DIFFERENT = [
    ipaddress.ip_network(block)
    for block in (
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "224.0.0.0/4", "2001::/23", "2002::/16", "3fff::/20"),
        *("5f00::/16", "64:ff9b::/95", "64:ff9b:1::/48", "::/95", "::ffff:0:0/96", "100::/63"),
    )
]


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6, network="2000::/3") | st.ip_addresses(v=6))
def test_for_all_other_addresses_the_guard_agrees_with_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if any(address.version == block.version and address in block for block in _DIFFERENT):
        return
    if address.version == 6 and (int(address) >> 32) & 0xFDFF_FFFF == 0x5EFE:
        return  # ISATAP
    expected = address.is_global and not (address.is_reserved or address.is_multicast)
    assert (AddressGuard().refusal(str(address)) is None) == expected


ADDRESSES = ["127.0.0.2", "10.1.2.3", "169.254.169.254"]


def test_the_address_is_spelled_in_over_a_hundred_ways() -> None:
    assert len(spellings(ADDRESSES[0])) >= 105


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_spelling_gets_a_private_address_past_the_guard(address: str) -> None:
    begin = request_url("http://example.com/a")
    for name, authority in spellings(address).items():
        for make in (request_url, lambda url: redirect_target(begin, url)):
            try:
                host = make(f"http://{authority}/a.jpg").host  # type: ignore[no-untyped-call]
            except FetchError:
                continue
            literal = is_ipv4(host) or ":" in host
            assert not literal or AddressGuard().refusal(host), name
            assert literal or _numeric_address(host) is None, name


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14"])
def test_public_addresses_are_allowed_in_the_embedded_forms_that_routers_translate(address: str) -> None:
    high, low = divmod(int(ipaddress.IPv4Address(address)), 1 << 16)
    for form in (
        address,
        f"::ffff:{address}",
        f"64:ff9b::{address}",
        f"64:ff9b::{high:x}:{low:x}",
        f"2002:{high:x}:{low:x}::1",
    ):
        assert AddressGuard().refusal(form) is None, form


def test_a_blocked_public_address_is_blocked_or_refused_in_every_spelling() -> None:
    """Except in ISATAP addresses: those belong to the network of their prefix, so no list may take them for the IPv4
    address, or an allowed host would allow addresses of other networks."""
    address, blocked = "8.8.4.4", SourceRules(url_block_hosts=["8.8.4.4"])
    for name, authority in spellings(address).items():
        url = parse_url(f"http://{authority}/a.jpg")
        reaches = url.parsed is not None and (is_ipv4(url.parsed.host) or ":" in url.parsed.host)
        if reaches and AddressGuard().refusal(url.parsed.host) is None:
            assert (refused_redirect(url, blocked) is not None) is ("ISATAP" not in name), name
    for entry in ("::ffff:8.8.4.4", "64:ff9b::808:404", "2002:808:404::"):  # an entry can be in any of these forms too
        assert refused_redirect(parse_url("http://8.8.4.4/"), SourceRules(url_block_hosts=[entry]))


def _numeric_address(host: str) -> str | None:
    """The address that the C library reads without asking a name server; None if it would ask one."""
    try:
        found = socket.getaddrinfo(host.rstrip("."), 80, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)
    except OSError:
        return None
    return str(found[0][4][0])
