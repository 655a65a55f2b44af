"""Tests HTTP status codes, Retry-After, and the delay before another attempt."""

import pytest

from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.fetch.retry_policy import parse_retry_after, require_success, retry_delay_s
from pairmill.schemas.status import Status


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (101, Status.HTTP_OTHER),
        (200, None),
        (203, None),
        (206, Status.HTTP_OTHER),
        (300, Status.HTTP_OTHER),
        (304, Status.HTTP_OTHER),
        (400, Status.HTTP_4XX),
        (404, Status.HTTP_4XX),
        (429, Status.HTTP_429),
        (451, Status.HTTP_4XX),
        (500, Status.HTTP_5XX),
        (503, Status.HTTP_5XX),
        (999, Status.HTTP_OTHER),
    ],
)
def test_each_http_status_code_has_its_status(code: int, status: Status | None) -> None:
    if status is None:
        require_success(code, None)
        return
    with pytest.raises(FetchError) as caught:
        require_success(code, "7")
    assert caught.value.status is status
    assert caught.value.retry_after_s == (7 if status.worth_retry else None)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), (" 120 ", 120), ("0", 0), (None, None), ("-1", None), ("1.5", None), ("soon", None), ("9" * 30, None)],
)
def test_retry_after_is_parsed_as_seconds(text: str | None, value: float | None) -> None:
    assert parse_retry_after(text) == value


def test_retry_delays_grow_up_to_a_bound_and_end() -> None:
    failure = FetchError(Status.CONNECTION_LOST)
    for attempts, longest in ((1, 1), (2, 2), (3, 4), (12, 10)):
        delays = [retry_delay_s(failure, attempts, 20) for _ in range(200)]
        assert all(delay is not None and 0 <= delay <= longest for delay in delays)
    assert retry_delay_s(failure, 3, retries=2) is None
    assert retry_delay_s(FetchError(Status.HTTP_429, retry_after_s=4), 1, 1) == 4
    assert retry_delay_s(FetchError(Status.HTTP_4XX), 1, 5) is None
    assert retry_delay_s(FetchError(Status.DNS_ERROR), 1, 5) is None
