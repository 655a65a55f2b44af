"""Sends a small request to each bucket before work begins, so that a wrong endpoint, key or name is reported at once.

s3fs and botocore retry for minutes, which is right during the work but wrong if a setting has a typo. Temporary
problems (5xx, throttling, a lost connection) are ignored here, because the work itself retries after them.
"""

import functools
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pairmill.pipeline.common.deadline import within
from pairmill.pipeline.common.files import GLOB_CHARACTERS, S3_SCHEMES
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.s3 import S3Config

_TIMEOUT_S = 5
"""Time limit for connecting, and again for the response."""
_DEADLINE_S = 8.0
"""Time limit for everything, including DNS and the lookup of credentials."""

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or s3.profile"
_CHECK_ENDPOINT = "check s3.endpoint (or AWS_ENDPOINT_URL) and the network"
_NOT_S3 = f"the response is not from an S3 server: {_CHECK_ENDPOINT}"
_REMEDIES = {
    "NoSuchBucket": "create the bucket, or correct its name or s3.endpoint",
    "AccessDenied": f"grant s3:ListBucket, or use other credentials: {_KEYS}",
    "InvalidAccessKeyId": f"correct the credentials: {_KEYS}",
    "SignatureDoesNotMatch": f"correct the credentials: {_KEYS}",
    "ExpiredToken": "sign in again",
    "RequestTimeTooSkewed": "correct this machine's clock",
    "AuthorizationHeaderMalformed": "set s3.region to the bucket's region",
    "PermanentRedirect": "set s3.region to the bucket's region",
}


class S3AccessError(PairmillError, OSError):
    """A bucket cannot be reached or used. The message gives the bucket, the endpoint and the remedy on one line."""

    kind = FailureKind.JOB


def check_buckets(urls: Iterable[str], s3: S3Config) -> None:
    """Check each bucket in `urls` by its first URL. Takes at most 10 s. Raises S3AccessError.

    A bucket that passes is not checked again by this process.
    """
    first: dict[str, str] = {}
    for url in urls:
        if url.startswith(S3_SCHEMES):
            first.setdefault(_split(url)[0], url)
    if first:
        questions = [_Question(*_split(url), json.dumps(s3.options(url), sort_keys=True)) for url in first.values()]
        with ThreadPoolExecutor(len(questions)) as pool:
            list(pool.map(_check, questions))


@dataclass(frozen=True)
class _Question:
    """One check: can we list this key in this bucket? Hashable, so that the result can be cached."""

    bucket: str
    key: str
    options_json: str
    """Options for s3fs."""

    @property
    def options(self) -> dict[str, object]:
        return json.loads(self.options_json)  # type: ignore[no-any-return]

    @property
    def prefix(self) -> str:
        """The prefix that the work will list. Permissions may be limited to a prefix."""
        plain = next((at for at, char in enumerate(self.key) if char in GLOB_CHARACTERS), None)
        return self.key[:plain] if plain is not None else f"{self.key}/" if self.key else ""


@functools.cache
def _check(question: _Question) -> None:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    endpoints = [_endpoint(question.options)]

    def ask() -> None:
        with closing(_client(question.options)) as client:
            endpoints.append(client.meta.endpoint_url)
            _ask(client, question)

    try:
        within(_DEADLINE_S, ask)
    except ClientError as error:
        problem = _refusal(error.response)
    except (BotoCoreError, ResponseParserError, TimeoutError) as error:
        problem = _failure(error)
    else:
        return
    if problem:
        raise S3AccessError(f"s3://{question.bucket} at {endpoints[-1]}: {problem}")


def _endpoint(options: Mapping[str, Any]) -> str:
    """The endpoint, if it is known without a client: a client cannot be created with a wrong profile."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    given = [options.get("endpoint_url"), *map(os.environ.get, names), "https://s3.amazonaws.com"]
    return next(str(each) for each in given if each)


def _client(options: Mapping[str, Any]) -> Any:
    """A botocore client like s3fs's, but with short timeouts."""
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        connect_timeout=_TIMEOUT_S,
        read_timeout=_TIMEOUT_S,
        retries={"total_max_attempts": 1},
        signature_version=UNSIGNED if options.get("anon") else None,
    )
    session = botocore.session.Session(profile=options.get("profile"))
    region = options.get("client_kwargs", {}).get("region_name")
    return session.create_client("s3", region_name=region, endpoint_url=options.get("endpoint_url"), config=config)


def _ask(client: Any, question: _Question) -> None:
    """List a key. If that is forbidden, request the object itself, because credentials may permit only reading it."""
    from botocore.exceptions import ClientError
    from botocore.parsers import ResponseParserError

    try:
        answer = client.list_objects_v2(Bucket=question.bucket, Prefix=question.prefix, MaxKeys=1)
        if not answer.keys() - {"ResponseMetadata"}:
            raise ResponseParserError("no listing")
    except ClientError as denied:
        if denied.response.get("Error", {}).get("Code") != "AccessDenied" or not question.key:
            raise
        try:
            client.head_object(Bucket=question.bucket, Key=question.key)
        except ClientError:
            raise denied from None


def _refusal(response: Mapping[str, Any]) -> str | None:
    """The problem in an error response. None if a retry may succeed."""
    code = str(response.get("Error", {}).get("Code", ""))
    http = response.get("ResponseMetadata", {})
    status = int(http.get("HTTPStatusCode", 400))
    if status == 500 and "html" in http.get("HTTPHeaders", {}).get("content-type", ""):
        return _NOT_S3  # botocore turns a 200 that is not XML into a 500
    if status >= 500 or status == 429:
        return None
    if not code or code.isdigit():  # no code, or botocore's own; S3 servers send a code with every error
        return f"HTTP {status}: {_NOT_S3}"
    return f"{code}: {_REMEDIES.get(code, 'check the credentials, the permissions on the bucket, and s3.endpoint')}"


def _failure(error: Exception) -> str | None:
    """The reason for a missing response. None if a retry may succeed."""
    from botocore import exceptions

    match error:
        case exceptions.EndpointConnectionError() | exceptions.ProxyConnectionError():
            return f"cannot connect: {_CHECK_ENDPOINT}"
        case exceptions.ConnectTimeoutError() | exceptions.ReadTimeoutError() | TimeoutError():
            return f"no response within {_TIMEOUT_S} s: {_CHECK_ENDPOINT}"
        case exceptions.SSLError():
            return f"cannot make a secure connection: {_CHECK_ENDPOINT}"
        case exceptions.HTTPClientError() | exceptions.ConnectionError():
            return None  # a lost connection
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return f"no credentials: set {_KEYS}, or s3.anonymous: true for a public bucket"
        case exceptions.ParamValidationError():
            return "not a valid bucket name"
        case exceptions.BotoCoreError():
            return f"{' '.join(str(error).split())}: check s3.* and ~/.aws"
    return _NOT_S3


def _split(url: str) -> tuple[str, str]:
    """(bucket, key) of a URL."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key.rstrip("/")
