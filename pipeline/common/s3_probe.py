"""One small question to each bucket before the work begins, so that a wrong endpoint, key or name is one line at once.

s3fs and botocore try again for minutes, which is right while work is under way and wrong for a slip of the pen. What
may get better by itself (5xx, throttling, a connection that is cut) is no finding here: the work itself waits it out.
"""

import functools
import json
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
"""For connecting, and for the answer."""
_DEADLINE_S = 8.0
"""For all of it, with names and credentials that are looked up."""

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or s3.profile"
_CHECK_ENDPOINT = "check s3.endpoint (or AWS_ENDPOINT_URL) and the network"
_REMEDIES = {
    "NoSuchBucket": "create the bucket, or correct its name or s3.endpoint",
    "HTTP 404": "this is no S3 server; correct s3.endpoint",
    "AccessDenied": f"allow it s3:ListBucket, or give other credentials: {_KEYS}",
    "InvalidAccessKeyId": f"correct the credentials: {_KEYS}",
    "SignatureDoesNotMatch": f"correct the credentials: {_KEYS}",
    "ExpiredToken": "sign in again",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AuthorizationHeaderMalformed": "set s3.region to the bucket's",
    "PermanentRedirect": "set s3.region to the bucket's",
}


class S3AccessError(PairmillError, OSError):
    """A bucket cannot be reached or used; the message names it, its endpoint and the remedy, on one line."""

    kind = FailureKind.JOB


def check_buckets(urls: Iterable[str], s3: S3Config) -> None:
    """Ask each bucket that is among the URLs, by its first URL. Within 10 s. Raises S3AccessError.

    A bucket that has answered well is not asked again by this process.
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
    """Whether a bucket is there and lists a key. Hashable, so that the answer can be remembered."""

    bucket: str
    key: str
    options_json: str
    """Of s3fs."""

    @property
    def options(self) -> dict[str, Any]:
        return json.loads(self.options_json)  # type: ignore[no-any-return]

    @property
    def prefix(self) -> str:
        """Of the listing that the work will ask for, as rights may end at a prefix."""
        plain = next((at for at, char in enumerate(self.key) if char in GLOB_CHARACTERS), None)
        return self.key[:plain] if plain is not None else f"{self.key}/" if self.key else ""


@functools.cache
def _check(question: _Question) -> None:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    where = [f"s3://{question.bucket}"]

    def ask() -> None:
        with closing(_client(question.options)) as client:
            where.append(f"at {client.meta.endpoint_url}")
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
        raise S3AccessError(f"{' '.join(where)}: {problem}")


def _client(options: Mapping[str, Any]) -> Any:
    """botocore's, as s3fs would make it but for the time that it takes."""
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
    """List a key, or where that is forbidden, ask for the object itself: its reader may have no other right."""
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
    """What it means that the server refuses; None where a later one may differ."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400))
    if status >= 500 or status == 429:
        return None
    code = code or f"HTTP {status}"
    return f"{code}: {_REMEDIES.get(code, 'check the credentials, the rights on the bucket, and s3.endpoint')}"


def _failure(error: Exception) -> str | None:
    """What it means that there is no answer; None where a later try may succeed."""
    from botocore import exceptions

    match error:
        case exceptions.EndpointConnectionError() | exceptions.ProxyConnectionError():
            return f"nothing answers there: {_CHECK_ENDPOINT}"
        case exceptions.ConnectTimeoutError() | exceptions.ReadTimeoutError() | TimeoutError():
            return f"no answer within {_TIMEOUT_S} s: {_CHECK_ENDPOINT}"
        case exceptions.SSLError():
            return f"no secure connection can be made: {_CHECK_ENDPOINT}"
        case exceptions.HTTPClientError() | exceptions.ConnectionError():
            return None  # a connection that was cut
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return f"no credentials: set {_KEYS}, or s3.anonymous: true for a public bucket"
        case exceptions.ParamValidationError():
            return "this is no name of a bucket"
        case exceptions.BotoCoreError():
            return f"{' '.join(str(error).split())}: check s3.* and ~/.aws"
    return f"the answer is not S3's: {_CHECK_ENDPOINT}"


def _split(url: str) -> tuple[str, str]:
    """(bucket, key) of a URL."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key.rstrip("/")
