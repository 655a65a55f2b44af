"""Tests which addresses we may connect to and which strings are addresses at all."""

import pytest

from pairmill.pipeline.fetch.addresses import AddressGuard, is_ipv4, is_legacy_ipv4

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "2606:4700::1111",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]
REFUSED = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # Alibaba's metadata
    "127.0.0.1",
    "168.63.129.16",  # Azure's wire server
    "169.254.169.254",  # metadata of AWS, Google, Azure
    "172.16.0.1",
    "192.0.0.192",  # Oracle's metadata
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",  # NAT64
    "64:ff9b:1::1",
    "100::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo around 192.0.2.45
    "2001:20::1",  # ORCHIDv2 (RFC 7343)
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4 around 127.0.0.1
    "2a00:1450:4001::5efe:10.0.0.1",  # ISATAP
    "fc00::1",
    "fd00:ec2::254",  # AWS metadata over IPv6
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "no address",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert AddressGuard().refusal(address) is None


@pytest.mark.parametrize("address", REFUSED)
def test_all_other_addresses_are_refused_with_a_reason(address: str) -> None:
    assert AddressGuard().refusal(address)


def test_allowed_networks_are_allowed_in_every_form_but_other_private_addresses_are_not() -> None:
    guard = AddressGuard(["127.0.0.0/8", "fd00:1::/32"])
    for address in ("127.0.0.1", "127.9.9.9", "::ffff:127.0.0.1", "fd00:1::5", "8.8.8.8"):
        assert guard.refusal(address) is None, address
    for address in ("10.0.0.1", "::1", "fd00:2::5", "169.254.169.254"):
        assert guard.refusal(address), address


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1.", "1", "017700000001"]
)
def test_disguised_ipv4_is_detected(host: str) -> None:
    assert is_legacy_ipv4(host)
    assert not is_ipv4(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "example.com", "1.2.3.4.5", "cafe", "a.1x", "::1"])
def test_names_and_plain_addresses_are_not_disguised(host: str) -> None:
    assert not is_legacy_ipv4(host)
