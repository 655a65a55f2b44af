"""Defines FetchOutcome, which carries the result for a URL from the request to the row in `pairs/` or `rejects/`.

Inside `fetch`, a FetchError ends a download; outside, there are only outcomes. `outcome_columns.py` writes them into
the shard's table.
"""

import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime

from pairmill.pipeline.image.processor import ProcessedImage
from pairmill.schemas.status import Status


class FetchError(Exception):
    """A download failed with this Status. `retry_after_s`: how long the server asks us to wait before trying again."""

    def __init__(self, status: Status, detail: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(status.value, detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class FetchOutcome:
    """One URL's Status, what is known about the response, and the stored image if there is one.

    None means unknown or not applicable. Fields and properties are named after the columns of
    `pairmill.schemas.pairs.FETCHED`.
    """

    status: Status
    detail: str | None = None
    http_status: int | None = None
    final_url: str | None = None
    """URL of the last response; None if there was none."""
    content_type: str | None = None
    fetch_attempts: int | None = None
    fetch_s: float | None = None
    """Seconds spent on this URL, not counting look-ups of names and the time it waited for our own limits."""
    fetched_at: datetime | None = None
    original_bytes: int | None = None
    sha256: str | None = None
    """Digest of the original bytes, in hex, like `md5`."""
    md5: str | None = None
    """None unless the job asks for it."""
    image: ProcessedImage | None = None
    body: bytes | None = field(default=None, repr=False)
    """The original bytes, until they are decoded."""

    @property
    def original_format(self) -> str | None:
        """Pillow's name for the format (JPEG, PNG, ...)."""
        return None if self.image is None else self.image.original_format

    @property
    def original_width(self) -> int | None:
        """Pixels, upright."""
        return None if self.image is None else self.image.original_width

    @property
    def original_height(self) -> int | None:
        """Pixels, upright."""
        return None if self.image is None else self.image.original_height

    def with_digests_of(self, body: bytes, md5: bool) -> "FetchOutcome":
        """The outcome with the size and digests of the body instead of the body itself, whose memory can be freed.

        `md5`: also compute the MD5.
        """
        return replace(
            self,
            body=None,
            original_bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            md5=hashlib.md5(body, usedforsecurity=False).hexdigest() if md5 else None,
        )

    def with_image(self, image: ProcessedImage) -> "FetchOutcome":
        """The outcome with its processed image, and the Status and detail of the image."""
        return replace(self, status=image.status, detail=image.detail, image=image)

    def refused(self, status: Status, detail: str | None = None) -> "FetchOutcome":
        """The same outcome with another Status."""
        return replace(self, status=status, detail=detail)
