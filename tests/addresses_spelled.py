"""Spells an IPv4 address in every way that a URL can: in the forms of inet_aton(3), browsers, IDNA and IPv6."""

import ipaddress
from collections.abc import Callable, Iterator

_NUMBERS: dict[str, Callable[[int], str]] = {
    "decimal": str,
    "octal": lambda number: f"0{number:o}",
    "octal, padded": lambda number: f"0000{number:o}",
    "hex": lambda number: f"0x{number:x}",
    "hex, capitals": lambda number: f"0X{number:X}",
    "hex, padded": lambda number: f"0x0000{number:x}",
}
_DIGITS = {
    "full-width": "０１２３４５６７８９",
    "circled": "⓪①②③④⑤⑥⑦⑧⑨",
    "superscript": "⁰¹²³⁴⁵⁶⁷⁸⁹",
    "subscript": "₀₁₂₃₄₅₆₇₈₉",
    "mathematical": "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗",
    "sans": "𝟢𝟣𝟤𝟥𝟦𝟧𝟨𝟩𝟪𝟫",
    "Arabic": "٠١٢٣٤٥٦٧٨٩",
    "Devanagari": "०१२३४५६७८९",
}
_DOTS = {"ideographic": "。", "full-width": "．", "half-width": "｡", "one-dot leader": "․"}


def spellings(address: str) -> dict[str, str]:
    """Name of the spelling -> the authority of a URL that spells the address."""
    return {**dict(_numeric(address)), **dict(_exotic(address)), **dict(_in_ipv6(address))}


def _numeric(address: str) -> Iterator[tuple[str, str]]:
    a, b, c, d = ipaddress.IPv4Address(address).packed
    parts = {
        1: [int(ipaddress.IPv4Address(address))],
        2: [a, b << 16 | c << 8 | d],
        3: [a, b, c << 8 | d],
        4: [a, b, c, d],
    }
    for count, numbers in parts.items():
        for name, write in _NUMBERS.items():
            yield f"{name}, {count} parts", ".".join(map(write, numbers))
        mixed = [write(number) for number, write in zip(numbers, list(_NUMBERS.values())[::-1], strict=False)]
        yield f"mixed, {count} parts", ".".join(mixed)
        yield f"hex, {count} parts, a trailing dot", ".".join(map(hex, numbers)) + "."
    yield "a trailing dot", address + "."
    yield "two trailing dots", address + ".."
    yield "a leading zero part", "0." + address
    yield "a port", address + ":80"
    yield "a user", "example.com@" + address
    yield "a user and a password", "example.com:80@" + address
    yield "a user, encoded", "example.com%2f@" + address
    yield "a backslash", "example.com\\@" + address
    yield "overflow", str(int(ipaddress.IPv4Address(address)) + 2**32)
    yield "overflow in one part", f"{a + 256}.{b}.{c}.{d}"
    yield "padded", ".".join(f"{number:03d}" for number in (a, b, c, d))


def _exotic(address: str) -> Iterator[tuple[str, str]]:
    whole = str(int(ipaddress.IPv4Address(address)))
    for name, digits in _DIGITS.items():
        yield f"{name} digits", address.translate(str.maketrans("0123456789", digits))
        yield f"{name} digits, one part", whole.translate(str.maketrans("0123456789", digits))
    for name, dot in _DOTS.items():
        yield f"{name} dots", address.replace(".", dot)
        yield f"{name} dots, hex", dot.join(hex(int(part)) for part in address.split("."))
    yield "full-width hex", "０ｘ" + f"{int(whole):x}"
    yield "percent-encoded", "".join(f"%{ord(letter):02x}" for letter in address)
    yield "a percent-encoded dot", address.replace(".", "%2e", 1)
    yield "a soft hyphen", address.replace(".", ".\u00ad", 1)
    yield "a zero-width space", address.replace(".", "\u200b.", 1)
    yield "a word joiner", "\u2060" + address


def _in_ipv6(address: str) -> Iterator[tuple[str, str]]:
    packed = ipaddress.IPv4Address(address).packed
    number = int.from_bytes(packed, "big")
    high, low = number >> 16, number & 0xFFFF
    inverted = number ^ 0xFFFF_FFFF
    embedded = {
        "mapped": [f"::ffff:{address}", f"::ffff:{high:x}:{low:x}", f"::FFFF:{high:X}:{low:X}"],
        "mapped, in full": [f"0:0:0:0:0:ffff:{address}", f"0000:0000:0000:0000:0000:ffff:{high:04x}:{low:04x}"],
        "mapped, half": [f"0::ffff:{address}", f"::0:ffff:{address}", f"0:0::ffff:{high:x}:{low:x}"],
        "compatible": [f"::{address}", f"::{high:x}:{low:x}", f"0:0:0:0:0:0:{high:x}:{low:x}"],
        "translated": [f"::ffff:0:{address}", f"::ffff:0:{high:x}:{low:x}"],
        "NAT64": [f"64:ff9b::{address}", f"64:ff9b::{high:x}:{low:x}", f"0064:ff9b:0:0:0:0:{high:x}:{low:x}"],
        "local NAT64": [f"64:ff9b:1::{address}", f"64:ff9b:1:ffff::{high:x}:{low:x}"],
        "6to4": [f"2002:{high:x}:{low:x}::", f"2002:{high:x}:{low:x}::1", f"2002:{high:x}:{low:x}:1::{address}"],
        "Teredo": [f"2001:0:4136:e378:8000:63bf:{inverted >> 16:x}:{inverted & 0xFFFF:x}"],
        "Teredo's server": [f"2001:0:{high:x}:{low:x}:0:0:f7f7:f7f7"],
        "ISATAP": [f"2600::5efe:{address}", f"2600::200:5efe:{high:x}:{low:x}"],
    }
    for name, forms in embedded.items():
        for form in forms:
            yield f"{name}: {form}", f"[{form}]"
    yield "a zone", f"[::ffff:{address}%eth0]"
    yield "a zone, encoded", f"[::ffff:{address}%25eth0]"
    yield "an empty zone", f"[::ffff:{address}%]"
    yield "a future version", f"[v1.{address}]"
    yield "IPv4 in brackets", f"[{address}]"
    yield "IPv6 without brackets", f"::ffff:{address}"
    yield "a mapped address with octal numbers", "[::ffff:" + ".".join(f"0{part:o}" for part in packed) + "]"
