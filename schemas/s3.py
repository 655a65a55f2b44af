"""How buckets are reached. No secret stands here: keys come from the environment, the profile or the machine's role."""

from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic_core import PydanticCustomError

SECRET = "secret"
"""Type of the validation errors whose input must not be shown."""

_RETRIES = {"mode": "standard", "max_attempts": 9}
"""botocore's: 500, 502, 503, 504, SlowDown and lost connections are tried again after up to 1, 2, 4 ... 20 s."""
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_SIGNED = ("x-amz-signature=", "x-amz-credential=", "signature=", "x-goog-signature=", "sig=")


class S3Access(BaseModel):
    """Where a bucket is, and as whom it is asked. None: as AWS's own tools decide (AWS_ENDPOINT_URL, AWS_PROFILE)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str | None = None
    """URL of a server that speaks S3, as http(s)://host:port."""
    profile: str | None = None
    """Name of a profile in ~/.aws/config, which every machine that takes part must have."""
    region: str | None = None
    """Region of the bucket."""
    anonymous: bool | None = None
    """Send unsigned requests, for public buckets."""

    @field_validator("endpoint")
    @classmethod
    def _is_plain_url(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        without_secrets(endpoint)
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise PydanticCustomError(SECRET, "it is http://host:port or https://host, and nothing more")
        return endpoint

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if self.anonymous and self.profile:
            raise ValueError("anonymous and profile exclude each other")
        return self


class S3Config(S3Access):
    """The same for all buckets, and what is different for some of them."""

    buckets: dict[str, S3Access] = {}
    """Settings for single buckets, by name; whatever one leaves out is as for all."""

    def options(self, url: str) -> dict[str, Any]:
        """Of s3fs, for a `s3://bucket/...`. Listings are never cached: other workers write too."""
        own = self.buckets.get(url.partition("://")[2].partition("/")[0])
        access = {**_given(self), **(_given(own) if own else {})}
        if own and own.profile:
            access.pop("anonymous", None)
        if own and own.anonymous:
            access.pop("profile", None)
        options: dict[str, Any] = {
            "use_listings_cache": False,
            "config_kwargs": {
                "retries": _RETRIES,
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "read_timeout": _READ_TIMEOUT_S,
            },
        }
        if endpoint := access.get("endpoint"):
            options["endpoint_url"] = endpoint
        if region := access.get("region"):
            options["client_kwargs"] = {"region_name": region}
        if profile := access.get("profile"):
            options["profile"] = profile
        if access.get("anonymous"):
            options["anon"] = True
        return options


FROM_ENVIRONMENT = S3Config()
"""Everything as AWS's own tools decide."""


def _given(access: S3Access) -> dict[str, Any]:
    return {name: value for name in S3Access.model_fields if (value := getattr(access, name)) is not None}


def secret_in(url: str) -> str | None:
    """What is wrong with a URL that holds a password or a signature: it would be written into plans and messages."""
    _, separator, rest = url.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        return "a name or password stands in this URL; give it by the environment"
    query = rest.partition("?")[2].lower()
    if separator and any(part.startswith(_SIGNED) for part in query.split("&")):
        return "this URL is signed, so it is a password; name the object as s3://..."
    return None


def without_secrets(url: str) -> str:
    """The URL as it is, where it may be written down; else a validation error of the type SECRET."""
    if wrong := secret_in(url):
        raise PydanticCustomError(SECRET, "{wrong}", {"wrong": wrong})
    return url
