"""Which IP addresses a download may connect to.

Strangers write URL lists, and workers run inside private networks: without this check a list reaches cloud metadata
(169.254.169.254), databases and the host itself (server-side request forgery, CWE-918).
"""

import ipaddress
import socket
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IPv6 ranges that embed an IPv4 address: what counts is where the packet ends up.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215: network-local, any length of prefix
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 section 2.5.5.1, deprecated
_TEREDO = ipaddress.IPv6Network("2001::/32")  # RFC 4380
_SITE_LOCAL = ipaddress.IPv6Network("fec0::/10")  # RFC 3879: deprecated, yet routed inside some sites
_NEVER: tuple[Network, ...] = (
    ipaddress.IPv4Network("192.0.0.0/24"),  # RFC 6890 protocol assignments; Oracle's metadata is 192.0.0.192
    ipaddress.IPv4Network("192.88.99.0/24"),  # RFC 7526: the retired 6to4 relays
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure's wire server: a public number, answered by the host machine
    ipaddress.IPv6Network("2001::/23"),  # RFC 2928 protocol assignments; Python releases differ on parts of it
    _SITE_LOCAL,
    _LOCAL_NAT64,
)
_ISATAP_MARKS = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214 section 6.1: the interface id before the IPv4 address
_LOW_32 = 0xFFFF_FFFF


class AddressGuard:
    """Allows global unicast addresses, and those in `allow_networks` (CIDR blocks)."""

    def __init__(self, allow_networks: Iterable[str] = ()) -> None:
        self._allowed: list[Network] = [ipaddress.ip_network(network) for network in allow_networks]

    def refusal(self, host: str) -> str | None:
        """Why an IP address (text, a scope id allowed) must not be connected to; None if it may be."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return f"{host[:60]} is not an IP address"
        inner = _embedded_ipv4(address)
        if self._is_allowed(address) or (inner is not None and self._is_allowed(inner)):
            return None
        if inner is not None and not _is_public(inner):
            return f"{address} leads to {inner}"
        # A mapped, 6to4 or NAT64 address is only a way to write its IPv4 address: behind DNS64 every public host has
        # one. `is_global` says False to 6to4 since Python 3.11.10.
        translated = isinstance(address, ipaddress.IPv6Address) and (
            address.ipv4_mapped or address.sixtofour or address in _NAT64
        )
        return None if translated or _is_public(address) else f"{address} is not a public address"

    def _is_allowed(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._allowed)


def _is_public(address: Address) -> bool:
    """Global unicast. `is_global` follows IANA's special-purpose registries, and is True for global multicast."""
    if any(address.version == network.version and address in network for network in _NEVER):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded_ipv4(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a packet to this IPv6 address ends up at; None if the address embeds none."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if (inner := address.ipv4_mapped or address.sixtofour) is not None:
        return inner
    if address in _TEREDO:
        return ipaddress.IPv4Address(~int(address) & _LOW_32)  # the client's address, inverted
    isatap = (int(address) >> 32) & _LOW_32 in _ISATAP_MARKS
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 0xFFFF) or isatap:
        return ipaddress.IPv4Address(int(address) & _LOW_32)
    return None


def is_ipv4(host: str) -> bool:
    """True for four decimal numbers without leading zeros, the only form that all programs parse alike."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def is_legacy_ipv4(host: str) -> bool:
    """True for IPv4 in any other form: `2130706433`, `0x7f.1`, `0177.0.0.1`, `127.1`.

    C libraries and browsers parse these as addresses (inet_aton(3)); no honest URL list contains them.
    """
    try:
        socket.inet_aton(host.rstrip("."))
    except (OSError, ValueError):
        return False
    return host.isascii() and " " not in host and not is_ipv4(host)
