"""Finds the URLs and hosts that a URL or message names, in every spelling that a browser accepts, even within another
URL: the URLs of proxies and archives name those of the pictures."""

import re
import socket
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from urllib.parse import unquote

from pairmill.pipeline.common.url_parser import parse_url
from pairmill.pipeline.purge.keys import (
    MAX_HOST_CHARS,
    canonical_url,
    domains,
    hosts_in,
    url_host,
    urls_from,
    urls_in,
    without_punctuation,
)
from pairmill.pipeline.purge.notations import has_escapes, readings, without_line_breaks

_URL = re.compile(r"https?:|(?:[a-z][a-z0-9+.-]*:)?[/\\]{2}", re.IGNORECASE)
_NESTED_URL = re.compile("https?:/", re.IGNORECASE)
"""A URL in another one. Archives and proxies write one slash or two."""
_MAX_NESTED_URLS = 8
"""Maximum number of URLs that are read in another one. Without a limit, a long URL would take quadratic time."""
_NUMBER = re.compile(r"(?:[0-9a-fx]+\.)*[0-9][0-9a-fx]*")
_LETTERS = re.compile(r"[a-zA-Z]?[^\x00-\x7f]+")
"""Letters that can be composed. More than a host can have are not, because that would take quadratic time."""
_UNSEEN = [0xAD, 0x34F, *range(0x180B, 0x1810), 0x200B, *range(0x2060, 0x2065), *range(0xFE00, 0xFE10), 0xFEFF]
"""Soft hyphens, selectors of variants and characters without width. Browsers drop them from hosts (UTS 46)."""
_SAME_IN_HOSTS = dict.fromkeys(_UNSEEN) | dict.fromkeys(map(ord, "\u3002\uff0e\uff61"), ".")
_OTHER_IN_HOSTS = re.compile(f"[{''.join(map(chr, _SAME_IN_HOSTS))}]")


@dataclass(frozen=True)
class Names:
    """What a URL or message names."""

    spellings: Sequence[str]
    """The text as it stands and as it can be read."""
    urls: Collection[str]

    @classmethod
    def of(cls, text: str, is_url: bool) -> "Names":
        """What `text` names. `is_url`: whether the text is a URL as a whole. Of its `readings`, which are parts of it,
        only those that begin like a URL are."""
        given = dict.fromkeys([text.strip(), without_line_breaks(text.strip())])
        decoded = [reading for each in given if has_escapes(each) for reading in readings(each)]
        urls = {url for reading in (*given, *decoded) for url in named_urls(reading, is_url)}
        if is_url:
            urls.update(given, (word for reading in decoded for word in reading.split("\n") if _URL.match(word)))
        return cls([*given, *decoded], urls)

    def canonical_urls(self) -> set[str]:
        """The URLs in canonical form."""
        return set(map(canonical_url, self.urls))

    def hosts(self) -> set[str]:
        """The hosts with their parent domains."""
        return hosts_of_urls(self.urls).union(*map(named_hosts, self.spellings))


def exact_urls(text: str, is_url: bool) -> set[str]:
    """A URL, or the URLs in a message, in canonical form."""
    return set(map(canonical_url, [text] if is_url else urls_in(text)))


def exact_hosts(text: str, is_url: bool) -> set[str]:
    """The host of a URL, or the hosts in a message, with their parent domains."""
    found = {name for url in ([text] if is_url else urls_in(text)) for name in domains(url_host(url))}
    return found if is_url else found | hosts_in(text)


def named_urls(text: str, are_urls: bool = False) -> Iterator[str]:
    """The `urls_in` a message or URL, and the URLs within these, which need a scheme; in a query, these are also read
    up to the next parameter. `are_urls`: whether each line is a URL, so that the punctuation at its end belongs to
    it."""
    for start, url in urls_from(text):
        yield url
        if not are_urls or text[start - 1 : start] not in ("", "\n"):
            yield from without_punctuation(url)
        for nested in islice(_NESTED_URL.finditer(url, url.index("//")), _MAX_NESTED_URLS):
            found = url[nested.start() :]
            yield found
            if "?" in url[: nested.start()]:
                yield found.partition("&")[0]


def named_hosts(text: str) -> set[str]:
    """The `hosts_in` a message or URL, as it stands and as browsers read it."""
    as_read = text if text.isascii() else _as_in_hosts(text)
    return hosts_in(text) if as_read == text else hosts_in(text) | hosts_in(as_read)


def hosts_of_urls(urls: Iterable[str]) -> set[str]:
    """The hosts of URLs, as they stand and as browsers read them, with their parent domains."""
    return {name for url in urls for host in _hosts_of(url) for name in domains(host)}


def _hosts_of(url: str) -> set[str]:
    found = {url_host(url)}
    if parse_url(url).parsed is None and ("%" in url or not url.isascii()):
        found.add(url_host(_as_in_hosts(unquote(url))))
    return {_address(host) if _NUMBER.fullmatch(host) else host for host in found}


def _address(number: str) -> str:
    """The IPv4 address that a host with a number at its end is, as browsers accept it: `0x7f.1`; the host if it is
    none."""
    try:
        return socket.inet_ntoa(socket.inet_aton(number))
    except OSError:
        return number


def _as_in_hosts(text: str) -> str:
    """The text as browsers read it in a host: with plain dots, composed letters and no invisible characters."""
    plain = text.translate(_SAME_IN_HOSTS) if _OTHER_IN_HOSTS.search(text) else text
    return _LETTERS.sub(_composed, plain)


def _composed(letters: re.Match[str]) -> str:
    text = letters[0]
    return text if len(text) > MAX_HOST_CHARS else unicodedata.normalize("NFC", text)
