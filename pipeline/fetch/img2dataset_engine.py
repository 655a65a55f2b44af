"""Runs the second download engine: img2dataset's own Downloader and Resizer (1.47), in our pipeline.

It exists to compare the two engines on the same rows, rules and outputs. Requests obey our limits: `guarded_urllib`
connects only to allowed addresses, bounds bodies, and sends the job's user agent. The pictures are as img2dataset
makes them: orientation and color profiles are not applied, and 16-bit values are clipped.
"""

import io
import logging
import os
import sys
import tempfile
import threading
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict
from urllib.parse import unwrap

import cv2
import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.common.progress import ShardProgress, unwatched
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.fetch import optout
from pairmill.pipeline.fetch.guarded_urllib import GuardedOpener
from pairmill.pipeline.fetch.outcome import FetchOutcome
from pairmill.pipeline.fetch.outcome_columns import with_outcomes
from pairmill.pipeline.fetch.url_join import urls_to_fetch
from pairmill.pipeline.image.measures import measure
from pairmill.pipeline.image.one_color import is_one_color
from pairmill.pipeline.image.phash import phash
from pairmill.pipeline.image.processor import ProcessedImage
from pairmill.pipeline.image.sniff import FORMAT_HEAD_BYTES, image_format
from pairmill.pipeline.rules import SourceRules
from pairmill.schemas.job.pictures import Measure, used_measures
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.status import Status

_PNG_LEVEL = 6


class _SampleMetadata(TypedDict):
    """The metadata that img2dataset reports for one URL; sizes in pixels."""

    url: str
    status: str
    error_message: str | None
    width: int
    height: int
    original_width: int
    original_height: int


@contextmanager
def _stand_in_for(name: str) -> Iterator[None]:
    """Let modules import a module that they do not use here, even if this process hides it, without loading it."""
    if sys.modules.get(name) is not None:
        yield
        return
    before = {key: sys.modules[key] for key in [name] if key in sys.modules}
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(before)


class Img2datasetDownloader:
    """Like `downloader.Downloader`, but one shard at a time: img2dataset's Resizer redirects the process's stderr."""

    def __init__(self, job: BuildJob, sha256_column: str | None = None) -> None:
        self._sha256_column = sha256_column
        self._scores = job.picture_scores
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise albumentations checks for updates online
        with warnings.catch_warnings(), _stand_in_for("wandb"):
            warnings.simplefilter("ignore")  # imghdr: deprecated, and a separate package since Python 3.13
            from img2dataset.downloader import Downloader
            from img2dataset.resizer import Resizer
        logging.getLogger("exifread").setLevel(logging.ERROR)
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="pairmill-img2dataset-")
        self._opener = GuardedOpener(job.fetch, SourceRules.of(job))
        urllib.request.install_opener(self._opener)
        images, fetch = job.images, job.fetch
        resizer = Resizer(
            image_size=images.size,
            resize_mode=images.resize_mode,
            resize_only_if_bigger=images.resize_only_if_bigger,
            encode_quality=_PNG_LEVEL if images.format == "png" else images.quality,
            encode_format=images.format,
            skip_reencode=False,  # True would keep the metadata too
        )
        self._collector = _Collector(resizer, self._opener, job.computes_md5, used_measures(self._scores.values()))
        self._downloader = Downloader(
            sample_writer_class=lambda *_: self._collector,
            resizer=self._collector.resize,
            thread_count=fetch.concurrency,
            save_caption=False,
            extract_exif=False,
            output_folder=self._folder.name,
            column_list=["url"],
            timeout=fetch.timeout_s,
            number_sample_per_shard=max(job.shard_rows, 2),
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format=images.format,
            retries=fetch.retries,
            user_agent_token=optout.agent_token(fetch.user_agent),
            disallowed_header_directives=None,  # GuardedOpener refuses responses with such directives
        )

    def __call__(self, table: pa.Table, progress: ShardProgress | None = None) -> pa.Table:
        """The in-flight table with its URLs downloaded: see `with_outcomes`. Raises LocalFault."""
        expected_sha256 = urls_to_fetch(table, self._sha256_column)
        with self._lock:
            self._collector.progress = progress or unwatched()
            self._collector.progress.expect(len(expected_sha256))
            outcomes = self._download(expected_sha256) if expected_sha256 else {}
        return with_outcomes(table, outcomes, self._sha256_column, self._scores)

    def close(self) -> None:
        """Remove the files that img2dataset writes next to its shards, and restore urllib's own opener."""
        urllib.request.install_opener(None)
        self._folder.cleanup()

    def _download(self, expected_sha256: Mapping[str, frozenset[str]]) -> dict[str, FetchOutcome]:
        path = Path(self._folder.name, "shard.arrow")
        table = pa.table({"url": list(expected_sha256)})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        self._collector.outcomes = {}
        self._opener.failures.clear()
        self._opener.final_urls.clear()
        self._downloader.download_shard((0, str(path)))
        for failure in self._opener.failures.values():
            if isinstance(failure, LocalFault):
                raise failure
        found = self._collector.outcomes
        missing = FetchOutcome(Status.ROW_ERROR, "img2dataset returned no result")
        return {url: _if_expected(found.get(url, missing), digests) for url, digests in expected_sha256.items()}


class _Collector:
    """A sample writer in memory. img2dataset calls `resize` and then `write` for each picture in turn."""

    def __init__(
        self, resizer: Callable[..., Any], opener: GuardedOpener, md5: bool, measures: Sequence[Measure]
    ) -> None:
        self._resizer = resizer
        self._md5 = md5
        self._measures = measures
        self._opener = opener
        self._original = b""
        self.progress = unwatched()
        self.outcomes: dict[str, FetchOutcome] = {}

    def resize(self, stream: io.BytesIO, boxes: Any = None) -> Any:
        self._original = stream.getvalue()
        return self._resizer(stream, boxes)

    def write(self, image: bytes | None, key: str, caption: str | None, meta: _SampleMetadata) -> None:
        if meta["status"] == "failed_to_download":
            self.outcomes[meta["url"]] = self._failed(meta["error_message"] or "")
        else:
            body, self._original = self._original, b""
            processed = ProcessedImage(_refusal(body), clean_text(meta["error_message"]))
            if image is not None:
                processed = _processed(image, meta, body, self._measures)
            outcome = FetchOutcome(Status.OK, fetched_at=datetime.now(UTC))  # img2dataset reports nothing else
            self.outcomes[meta["url"]] = outcome.with_digests_of(body, self._md5).with_image(processed)
        asked = unwrap(meta["url"])  # as `Request.full_url` does: without blanks around it, for example
        outcome = replace(self.outcomes[meta["url"]], final_url=self._opener.final_urls.get(asked))
        self.outcomes[meta["url"]] = outcome
        self.progress.done(good_items=outcome.status is Status.OK, num_bytes=outcome.original_bytes or 0)

    def close(self) -> None: ...

    def _failed(self, ticket: str) -> FetchOutcome:
        failure = self._opener.failures.get(ticket)
        if isinstance(failure, FetchOutcome):
            return failure
        # urllib refused the URL before it called the opener.
        return FetchOutcome(Status.PROTOCOL_ERROR, clean_text(ticket), fetched_at=datetime.now(UTC))


def _refusal(body: bytes) -> Status:
    """The Status of a body that OpenCV cannot decode."""
    if not body:
        return Status.EMPTY_BODY
    return Status.IMAGE_CORRUPT if image_format(body[:FORMAT_HEAD_BYTES]) else Status.NOT_AN_IMAGE


def _if_expected(outcome: FetchOutcome, expected_sha256: frozenset[str]) -> FetchOutcome:
    if expected_sha256 and outcome.sha256 is not None and outcome.sha256 not in expected_sha256:
        return replace(outcome.refused(Status.CONTENT_CHANGED), image=None)
    return outcome


def _processed(image: bytes, meta: _SampleMetadata, original: bytes, measures: Sequence[Measure]) -> ProcessedImage:
    bgr = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)  # [height, width, 3]
    pixels = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    return ProcessedImage(
        status=Status.OK,
        original_width=meta["original_width"],
        original_height=meta["original_height"],
        image=image,
        width=meta["width"],
        height=meta["height"],
        phash=phash(pixels),
        one_color=is_one_color(pixels),
        measured=measure(pixels, original, measures) if measures else None,
    )
