"""Decides which IP addresses a download may connect to.

URL lists are untrusted, and workers run inside private networks. Without this check, a malicious list could make
workers contact cloud metadata services (169.254.169.254), databases and the host itself (server-side request forgery,
CWE-918).
"""

import ipaddress
import socket
from collections.abc import Iterable

from pairmill.pipeline.common.url_parser import encoded_ipv4

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_ADDRESSES = 4
"""Addresses per name to connect to: attempts overlap, and an untrusted name may have thousands of dead addresses."""

_IPV4_SPECIAL = """
    0.0.0.0/8           this network
    10.0.0.0/8          private use
    100.64.0.0/10       shared address space
    127.0.0.0/8         loopback
    169.254.0.0/16      link local
    172.16.0.0/12       private use
    192.0.0.0/24        IETF protocol assignments
    192.0.0.9/32      + port control protocol anycast
    192.0.0.10/32     + traversal using relays around NAT anycast
    192.0.2.0/24        documentation (TEST-NET-1)
    192.31.196.0/24   + AS112-v4
    192.52.193.0/24   + AMT
    192.88.99.0/24      deprecated (6to4 relay anycast)
    192.168.0.0/16      private use
    192.175.48.0/24   + direct delegation AS112 service
    198.18.0.0/15       benchmarking
    198.51.100.0/24     documentation (TEST-NET-2)
    203.0.113.0/24      documentation (TEST-NET-3)
    240.0.0.0/4         reserved
    255.255.255.255/32  limited broadcast
"""
_IPV6_SPECIAL = """
    ::1/128             loopback
    ::/128              unspecified
    ::ffff:0:0/96       IPv4-mapped
    64:ff9b::/96      + IPv4-IPv6 translation
    64:ff9b:1::/48      IPv4-IPv6 translation, local use
    100::/64            discard only
    100:0:0:1::/64      dummy prefix
    2001::/23           IETF protocol assignments
    2001::/32           Teredo
    2001:1::1/128     + port control protocol anycast
    2001:1::2/128     + traversal using relays around NAT anycast
    2001:1::3/128     + DNS-SD service registration protocol anycast
    2001:2::/48         benchmarking
    2001:3::/32       + AMT
    2001:4:112::/48   + AS112-v6
    2001:10::/28        deprecated (ORCHID)
    2001:20::/28      + ORCHIDv2
    2001:30::/28      + drone remote ID
    2001:db8::/32       documentation
    2002::/16           6to4
    2620:4f:8000::/48 + direct delegation AS112 service
    3fff::/20           documentation
    5f00::/16           segment routing SIDs
    fc00::/7            unique local
    fe80::/10           link local
"""
"""IANA's special-purpose address registries as of October 2025. `+` marks blocks that are globally reachable. For an
address in several blocks, the smallest block decides.

https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry
"""

_ALSO_REFUSED = """
    168.63.129.16/32    Azure's wire server: a public address at which the host machine answers
    224.0.0.0/4         multicast
    2001:20::/28        ORCHIDv2: identifiers that no router forwards (RFC 7343 section 1)
    2001:30::/28        drone remote ID: like ORCHIDv2 (RFC 9374)
"""
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All assigned global unicast space: https://www.iana.org/assignments/ipv6-address-space"""

# IPv6 ranges that embed an IPv4 address: we check the address where the packet ends up.
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 section 2.5.5.1, deprecated
_TEREDO = ipaddress.IPv6Network("2001::/32")  # RFC 4380
_ISATAP_MARKS = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214 section 6.1: the interface id before the IPv4 address
_LOW_32 = 0xFFFF_FFFF


class AddressGuard:
    """Allows global unicast addresses, and those in `allow_networks` (CIDR blocks)."""

    def __init__(self, allow_networks: Iterable[str] = ()) -> None:
        self._allowed: list[Network] = [ipaddress.ip_network(network) for network in allow_networks]

    def refusal(self, host: str) -> str | None:
        """The reason not to connect to an IP address (text, optionally with a scope id); None if it is allowed."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return f"{host[:60]} is not an IP address"
        inner = _embedded_ipv4(address)
        if self._is_allowed(address) or (inner is not None and self._is_allowed(inner)):
            return None
        if inner is not None and not _is_public(inner):
            return f"{address} leads to {inner}"
        # Behind DNS64, every public host has an address that only encodes its IPv4 address.
        is_encoded = isinstance(address, ipaddress.IPv6Address) and encoded_ipv4(address) is not None
        return None if is_encoded or _is_public(address) else f"{address} is not a public address"

    def _is_allowed(self, address: Address) -> bool:
        return any(_contains(network, address) for network in self._allowed)


def _parse_table(table: str) -> list[tuple[Network, bool]]:
    """(block, whether it is globally reachable), smallest blocks first."""
    rows = [line.split() for line in table.strip().splitlines()]
    blocks = [(ipaddress.ip_network(row[0]), row[1] == "+") for row in rows]
    return sorted(blocks, key=lambda block: -block[0].prefixlen)


_SPECIAL = _parse_table(_IPV4_SPECIAL) + _parse_table(_IPV6_SPECIAL)
_NEVER = [network for network, _ in _parse_table(_ALSO_REFUSED)]


def _is_public(address: Address) -> bool:
    """Whether an address is global unicast and globally reachable, judging only by the tables, because `ipaddress`
    differs between Python versions."""
    if any(_contains(network, address) for network in _NEVER):
        return False
    default = address.version == 4 or address in _GLOBAL_UNICAST
    return next((reachable for network, reachable in _SPECIAL if _contains(network, address)), default)


def _contains(network: Network, address: Address) -> bool:
    return network.version == address.version and address in network


def _embedded_ipv4(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a packet to this IPv6 address ends up at; None if the address embeds none."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if (inner := encoded_ipv4(address)) is not None:
        return inner
    if address in _TEREDO:
        return ipaddress.IPv4Address(~int(address) & _LOW_32)  # the client's address, inverted
    isatap = (int(address) >> 32) & _LOW_32 in _ISATAP_MARKS
    if isatap or (address in _IPV4_COMPATIBLE and int(address) > 0xFFFF):
        return ipaddress.IPv4Address(int(address) & _LOW_32)
    return None


def is_ipv4(host: str) -> bool:
    """Whether a host is four decimal numbers without leading zeros, the only form that all programs parse alike."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return False
    return True


def is_legacy_ipv4(host: str) -> bool:
    """Whether a host is an IPv4 address in any other form: `2130706433`, `0x7f.1`, `0177.0.0.1`, `127.1`.

    C libraries and browsers parse these as addresses (inet_aton(3)); no honest URL list contains them.
    """
    try:
        socket.inet_aton(host.rstrip("."))
    except (OSError, ValueError):
        return False
    return host.isascii() and " " not in host and not is_ipv4(host)
