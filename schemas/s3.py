"""Defines how to access buckets. The settings contain no secrets: keys come from the environment, a profile or the
instance's IAM role."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic_core import PydanticCustomError

SECRET = "secret"
"""Type of validation errors whose input must not be shown."""

_RETRIES = {"mode": "standard", "max_attempts": 9}
"""botocore retries 500, 502, 503, 504, SlowDown and lost connections after up to 1, 2, 4 ... 20 s."""
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_SIGNATURE_PARAMETERS = ("x-amz-signature=", "x-amz-credential=", "signature=", "x-goog-signature=", "sig=")


class S3Access(BaseModel):
    """Where a bucket is and which credentials to use. None: as in AWS's own tools (AWS_ENDPOINT_URL, AWS_PROFILE)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str | None = None
    """URL of an S3-compatible server: http(s)://host:port."""
    profile: str | None = None
    """An AWS profile (`~/.aws/config`), which must exist on every node."""
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
            raise PydanticCustomError(SECRET, "an endpoint must look like http://host:port or https://host")
        return endpoint

    @model_validator(mode="after")
    def _are_exclusive(self) -> Self:
        if self.anonymous and self.profile:
            raise ValueError("anonymous and profile are mutually exclusive")
        return self


class S3Config(S3Access):
    """Settings for all buckets, and overrides for individual buckets."""

    buckets: dict[str, S3Access] = {}
    """Overrides for individual buckets, by name. Fields that are not set here use the settings for all buckets."""

    def options(self, url: str) -> dict[str, object]:
        """Options for s3fs to open `s3://bucket/...`. Listings are not cached, because other workers write too."""
        own = self.buckets.get(url.partition("://")[2].partition("/")[0])
        access = {**_given(self), **(_given(own) if own else {})}
        if own and own.profile:
            access.pop("anonymous", None)
        if own and own.anonymous:
            access.pop("profile", None)
        options: dict[str, object] = {
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
"""The same settings as AWS's own tools."""


def _given(access: S3Access) -> dict[str, object]:
    return {name: value for name in S3Access.model_fields if (value := getattr(access, name)) is not None}


def secret_in(url: str) -> str | None:
    """The reason to refuse a URL that contains a password or signature, which would appear in plans and messages. None
    if the URL contains no secret."""
    _, separator, rest = url.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        return "this URL contains a user name or password; use environment variables for credentials"
    query = rest.partition("?")[2].lower()
    if separator and any(part.startswith(_SIGNATURE_PARAMETERS) for part in query.split("&")):
        return "this URL is signed, which makes it a secret; use the object's s3:// URL"
    return None


def without_secrets(url: str) -> str:
    """Return the URL unchanged. Raises a validation error of type SECRET if it contains a secret."""
    if wrong := secret_in(url):
        raise PydanticCustomError(SECRET, "{wrong}", {"wrong": wrong})
    return url
