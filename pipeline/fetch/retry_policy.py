"""Decides what an HTTP status code means for a picture, and whether and when to try again."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.schemas.status import Status

# Exponential back-off with full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 10.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})  # RFC 9110 section 15.4


def is_redirect(code: int) -> bool:
    """Whether to follow the Location header of a response with this status code."""
    return code in _REDIRECTS


def require_success(code: int, retry_after: str | None) -> None:
    """Raise FetchError for anything but 2xx, and for 206, because we never ask for part of a file."""
    if 200 <= code < 300 and code != 206:
        return
    if code == 429:
        raise FetchError(Status.HTTP_429, retry_after_s=parse_retry_after(retry_after))
    if 500 <= code < 600:
        raise FetchError(Status.HTTP_5XX, retry_after_s=parse_retry_after(retry_after))
    raise FetchError(Status.HTTP_4XX if 400 <= code < 500 else Status.HTTP_OTHER)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header (RFC 9110 section 10.2.3) asks us to wait; None if it cannot be parsed."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return float(text)
    try:
        date = parsedate_to_datetime(text[:100])
    except (ValueError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0)


def retry_delay_s(failure: FetchError, attempts: int, retries: int) -> float | None:
    """Seconds to wait after this many attempts; None if there should be no further attempt."""
    if attempts > retries or not failure.status.worth_retry:
        return None
    if failure.status is Status.DNS_ERROR:
        return None  # the look-up itself was tried several times, and its failure is cached
    if failure.retry_after_s is not None:
        return failure.retry_after_s
    return random.uniform(0, min(_MAX_BACKOFF_S, _BACKOFF_S * 2 ** (attempts - 1)))
