"""Defines the section `rules`: which rows to keep."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pairmill.schemas.known import KnownRows
from pairmill.schemas.settings import GrowingSettings, Uri

_CUSTOM_RULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Cosine = Annotated[float, Field(ge=-1, le=1)]


class RulesConfig(GrowingSettings):
    """Which rows to keep. A rule whose setting is None, empty or False is off."""

    later = frozenset({"known"})

    preset: Literal["none", "datacomp-basic", "laion2b"] = "none"
    """Named set of rules, which the settings below override."""

    require_caption: bool = True
    """Drop null and empty captions. Has no effect if the source has no caption column."""
    caption_min_chars: Annotated[int, Field(ge=0)] | None = None
    """Drop shorter captions, counted in Unicode characters."""
    caption_max_chars: Annotated[int, Field(ge=1)] | None = None
    """Drop longer captions, counted in Unicode characters."""
    caption_min_words: Annotated[int, Field(ge=0)] | None = None
    """Drop captions with fewer words, separated by spaces."""
    caption_max_words: Annotated[int, Field(ge=1)] | None = None
    """Drop captions with more words, separated by spaces."""
    caption_drop_file_names: bool = False
    """Drop captions that are only a file name, such as IMG_1234.JPG."""
    caption_drop_dates: bool = False
    """Drop captions that are only a date, a time or a year."""
    caption_drop_hashes: bool = False
    """Drop captions that are only a hash, a UUID or base64."""
    caption_drop_urls: bool = False
    """Drop captions that are only a URL or a host name."""
    caption_boilerplate: list[str] = []
    """Drop captions that equal one of these, ignoring case and surrounding punctuation. `default`: a built-in list."""
    caption_blocked_terms: list[str] = []
    """Drop captions that contain one of these as whole words, ignoring case."""
    caption_languages: list[str] = []
    """ISO 639-1 codes. Drop captions in other languages."""
    caption_min_language_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum confidence in the detected language, for `caption_languages`."""
    license_allow: list[str] = []
    """Drop rows whose `source.license_column` is not one of these, ignoring case."""

    known: list[KnownRows] = []
    """Earlier datasets or lists; drop the rows that are in them. Uids and URLs are compared before anything is fetched,
    digests and perceptual hashes afterwards. An item can be just a path."""

    url_schemes: list[str] = ["http", "https"]
    """Schemes to accept: http, https or both. Nothing else is ever fetched."""
    url_block_hosts: list[str] = []
    """Hosts not to fetch from, including their subdomains. An IPv4 address includes its IPv6 forms, such as
    `64:ff9b::192.0.2.1`."""
    url_allow_hosts: list[str] = []
    """If set, fetch only from these hosts and their subdomains."""
    url_blocklist: Uri | None = None
    """Text file of URLs not to fetch, in any spelling, or their SHA-256 in hex, one per line."""

    image_min_side: Annotated[int, Field(ge=1)] | None = None
    """Minimum shorter side of the original picture, in pixels."""
    image_max_aspect: Annotated[float, Field(ge=1)] | None = None
    """Maximum ratio of the longer to the shorter side of the original picture."""
    image_min_area: Annotated[int, Field(ge=1)] | None = None
    """Minimum area of the original picture, in pixels."""
    image_max_area: Annotated[int, Field(ge=1)] | None = None
    """Maximum area of the original picture, in pixels."""
    image_min_bytes: Annotated[int, Field(ge=1)] | None = None
    """Minimum size of the original file, in bytes."""
    image_max_bytes: Annotated[int, Field(ge=1)] | None = None
    """Maximum size of the original file, in bytes."""
    image_drop_one_color: bool = False
    """Drop pictures of a single color."""
    md5_blocklist: Uri | None = None
    """Text file of MD5 digests of original files to drop, in hex, one per line."""
    sha256_blocklist: Uri | None = None
    """Text file of SHA-256 digests of original files to drop, in hex, one per line."""

    min_similarity: Cosine | dict[str, Cosine] | None = None
    """Minimum cosine similarity of picture and caption: one number for every model, or one per alias."""
    custom: list[str] = []
    """Your own rules as `module:function`. Their code is shipped to the workers."""

    @field_validator("url_schemes")
    @classmethod
    def _only_http(cls, schemes: list[str]) -> list[str]:
        if not set(schemes) <= {"http", "https"} or not schemes:
            raise ValueError("url_schemes must be http, https or both")
        return schemes

    @field_validator("custom")
    @classmethod
    def _are_functions(cls, names: list[str]) -> list[str]:
        for name in names:
            if not _CUSTOM_RULE.fullmatch(name):
                raise ValueError(f"{name!r} is not a custom rule; write it as module:function")
        return names
