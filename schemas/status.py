"""Defines all possible outcomes of a pair.

Every input row of a job gets exactly one Status, whose value is in the `status` column of `pairs/` or `rejects/`.
Statuses are listed in the order in which the checks run.
"""

from enum import StrEnum


class Step(StrEnum):
    """The steps of the pipeline that set a Status, in order."""

    INPUT = "input"
    CAPTION = "caption"
    URL = "url"
    FETCH = "fetch"
    IMAGE = "image"
    SCORE = "score"
    DONE = "done"


class Status(StrEnum):
    """The outcome of a pair, with the step that sets it and whether a retry could succeed."""

    step: Step
    worth_retry: bool

    def __new__(cls, value: str, step: Step, worth_retry: bool = False) -> "Status":
        """Create a member with a string value and two attributes."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.step = step
        member.worth_retry = worth_retry
        return member

    # the row itself
    ROW_MALFORMED = "row_malformed", Step.INPUT
    UID_INVALID = "uid_invalid", Step.INPUT
    WITHDRAWN = "withdrawn", Step.INPUT  # counted in the manifest but stored nowhere
    KNOWN_UID = "known_uid", Step.INPUT
    KNOWN_URL = "known_url", Step.INPUT

    # caption rules, before anything is downloaded
    CAPTION_INVALID = "caption_invalid", Step.CAPTION
    CAPTION_MISSING = "caption_missing", Step.CAPTION
    CAPTION_TOO_SHORT = "caption_too_short", Step.CAPTION
    CAPTION_TOO_LONG = "caption_too_long", Step.CAPTION
    CAPTION_TOO_FEW_WORDS = "caption_too_few_words", Step.CAPTION
    CAPTION_TOO_MANY_WORDS = "caption_too_many_words", Step.CAPTION
    CAPTION_IS_FILE_NAME = "caption_is_file_name", Step.CAPTION
    CAPTION_IS_DATE = "caption_is_date", Step.CAPTION
    CAPTION_IS_HASH = "caption_is_hash", Step.CAPTION
    CAPTION_IS_URL = "caption_is_url", Step.CAPTION
    CAPTION_IS_BOILERPLATE = "caption_is_boilerplate", Step.CAPTION
    CAPTION_BLOCKED_TERM = "caption_blocked_term", Step.CAPTION
    CAPTION_LANGUAGE = "caption_language", Step.CAPTION
    LICENSE_NOT_ALLOWED = "license_not_allowed", Step.CAPTION

    # URL rules, before anything is downloaded
    URL_MISSING = "url_missing", Step.URL
    URL_INVALID = "url_invalid", Step.URL
    URL_SCHEME = "url_scheme", Step.URL
    URL_HOST_BLOCKED = "url_host_blocked", Step.URL
    URL_HOST_NOT_ALLOWED = "url_host_not_allowed", Step.URL
    URL_BLOCKLISTED = "url_blocklisted", Step.URL

    # the download
    ADDRESS_REFUSED = "address_refused", Step.FETCH
    DNS_ERROR = "dns_error", Step.FETCH, True
    CONNECT_ERROR = "connect_error", Step.FETCH, True
    TLS_ERROR = "tls_error", Step.FETCH
    TIMEOUT = "timeout", Step.FETCH, True
    CONNECTION_LOST = "connection_lost", Step.FETCH, True
    PROTOCOL_ERROR = "protocol_error", Step.FETCH
    BAD_REDIRECT = "bad_redirect", Step.FETCH
    HTTP_4XX = "http_4xx", Step.FETCH
    HTTP_429 = "http_429", Step.FETCH, True
    HTTP_5XX = "http_5xx", Step.FETCH, True
    HTTP_OTHER = "http_other", Step.FETCH
    ROBOTS_DISALLOWED = "robots_disallowed", Step.FETCH
    OPTED_OUT = "opted_out", Step.FETCH
    EMPTY_BODY = "empty_body", Step.FETCH
    BODY_TOO_LARGE = "body_too_large", Step.FETCH
    BODY_TRUNCATED = "body_truncated", Step.FETCH, True
    NOT_AN_IMAGE = "not_an_image", Step.FETCH
    CONTENT_CHANGED = "content_changed", Step.FETCH

    # the picture
    KNOWN_PICTURE = "known_picture", Step.IMAGE
    MD5_BLOCKLISTED = "md5_blocklisted", Step.IMAGE
    SHA256_BLOCKLISTED = "sha256_blocklisted", Step.IMAGE
    IMAGE_UNSUPPORTED = "image_unsupported", Step.IMAGE
    IMAGE_BOMB = "image_bomb", Step.IMAGE
    IMAGE_CORRUPT = "image_corrupt", Step.IMAGE
    IMAGE_TOO_SMALL = "image_too_small", Step.IMAGE
    IMAGE_ASPECT = "image_aspect", Step.IMAGE
    IMAGE_AREA = "image_area", Step.IMAGE
    IMAGE_BYTES = "image_bytes", Step.IMAGE
    IMAGE_ONE_COLOR = "image_one_color", Step.IMAGE
    DECODER_CRASHED = "decoder_crashed", Step.IMAGE

    # the models' scores
    EMBEDDING_INVALID = "embedding_invalid", Step.SCORE
    LOW_SIMILARITY = "low_similarity", Step.SCORE

    # after all rules
    DUPLICATE_IN_SHARD = "duplicate_in_shard", Step.SCORE

    # any step
    CUSTOM_RULE = "custom_rule", Step.SCORE
    RULE_CRASHED = "rule_crashed", Step.SCORE
    ROW_ERROR = "row_error", Step.DONE

    OK = "ok", Step.DONE


def retryable() -> frozenset[Status]:
    """The statuses after which fetching the URL again could succeed."""
    return frozenset(status for status in Status if status.worth_retry)
