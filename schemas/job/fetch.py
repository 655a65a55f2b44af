"""Defines the section `fetch`: how URLs are downloaded."""

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pairmill.schemas.settings import Settings

_NAMESERVER = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:\[\]]+))(?::\d{1,5})?")


_PER_HOST_CONCURRENCY = 8


class FetchConfig(Settings):
    """How URLs are downloaded."""

    engine: Literal["aiohttp", "img2dataset"] = "aiohttp"
    """Which downloader to use. `aiohttp`: pairmill's own, named after the library that it first used. `img2dataset`:
    img2dataset's downloader and resizer, for comparison. It has no per-host limits, applies `timeout_s` to each attempt
    on its own, reports less about each download, and ignores orientation and color profiles."""
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Total time for one URL, including redirects and retries. Waiting for the job's limits does not count, nor do
    look-ups of host names, which take at most 5 s each."""
    connect_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Time to connect to a host."""
    max_bytes: Annotated[int, Field(ge=1_000)] = 20_000_000
    """Maximum size of a response body. Reading stops as soon as a body exceeds it."""
    retries: Annotated[int, Field(ge=0, le=20)] = 1
    """Number of retries after a failure that may be temporary (DNS, connect, timeout, 429, 5xx)."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    """Maximum number of redirects to follow per URL."""
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    """Requests in flight per download actor."""
    per_host_concurrency: Annotated[int, Field(ge=1)] = _PER_HOST_CONCURRENCY
    """Requests in flight per host and download actor."""
    per_host_interval_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Minimum time between the starts of two requests to the same host, per download actor."""
    nameservers: list[str] = []
    """Addresses of DNS servers (`1.1.1.1`, `1.1.1.1:5353`, `[::1]:53`). Empty: the machine's resolver."""
    allow_networks: list[str] = []
    """CIDR blocks to allow even if they are not public, such as 127.0.0.0/8. If there are any, names that do not exist
    are also looked up in the machine's own domains (`search` in resolv.conf)."""
    user_agent: str = "pairmill/0.1 (+https://pypi.org/project/pairmill)"
    """The User-Agent header. Say who you are and how to reach you."""
    respect_x_robots_tag: bool = True
    """Refuse pictures whose X-Robots-Tag header contains noai, noimageai, noindex or noimageindex."""
    respect_robots_txt: bool = False
    """Fetch each host's robots.txt (RFC 9309) and obey it."""

    @field_validator("allow_networks")
    @classmethod
    def _are_networks(cls, networks: list[str]) -> list[str]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks

    @model_validator(mode="after")
    def _engine_can_do_it(self) -> "FetchConfig":
        if self.engine == "img2dataset":
            beyond = {
                "respect_robots_txt": self.respect_robots_txt,
                "per_host_interval_s": self.per_host_interval_s,
                "per_host_concurrency": self.per_host_concurrency != _PER_HOST_CONCURRENCY,
                "nameservers": self.nameservers,
            }
            if unsupported := [name for name, value in beyond.items() if value]:
                raise ValueError(f"engine img2dataset does not support {', '.join(unsupported)}")
        return self

    @field_validator("nameservers")
    @classmethod
    def _are_addresses(cls, servers: list[str]) -> list[str]:
        for server in servers:
            match = _NAMESERVER.fullmatch(server)
            ipaddress.ip_address((match["v6"] or match["v4"]) if match else server)
        return servers

    @field_validator("user_agent")
    @classmethod
    def _is_header_value(cls, value: str) -> str:
        if not value.isprintable() or not value.isascii() or not value.strip():
            raise ValueError("user_agent must be printable ASCII on one line")
        return value
