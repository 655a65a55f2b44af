"""Makes the contact sheet: the best, borderline and worst pairs of an output folder, as one HTML file.

Shards are read batch by batch, only the narrow columns, and a section keeps no more rows than it shows, so memory use
does not grow with the dataset. Each picture takes one range read, and is embedded in the page as a thumbnail.
"""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.dataset.parquet import read_schema, read_table
from pairmill.pipeline.dataset.webdataset_tar import read_range
from pairmill.pipeline.report import page
from pairmill.pipeline.report.page import Card, Page, Section
from pairmill.schemas.manifest import ShardManifest

PAIRS_PER_SECTION = 24
THUMBNAIL_SIDE = 160
BINS = 200
"""Bins of the histogram over [-1, 1], 0.01 wide."""

_BATCH_ROWS = 16_384
_STORED_FORMATS = ("JPEG", "PNG", "WEBP")

Direction = Literal["ascending", "descending"]


@dataclass(frozen=True)
class _Pair:
    """The columns of a pair that the sheet shows."""

    uid: str
    url: str | None
    caption_clean: str | None
    similarity: float | None
    status: str
    kept: bool
    image_tar: str | None
    image_offset: int
    image_length: int


_COLUMNS = [field.name for field in fields(_Pair)]


def write_contact_sheet(store: Store, name: str, threshold: float | None) -> None:
    """Write the sheet of all committed shards to the file `name` of the store, overwriting an older one.

    `threshold`: the job's minimum similarity; None if it has none.
    """
    manifests = list(read_manifests(store))
    summary = _Summary(threshold)
    for batch in _batches(store, manifests):
        summary.add(batch)
    statuses: Counter[str] = Counter()
    for manifest in manifests:
        statuses.update(manifest.statuses)
    sheet = Page(
        title="/".join(store.root.rstrip("/").split("/")[-2:]),
        model=_model_name(store, manifests),
        threshold=threshold,
        statuses=statuses,
        histogram=summary.histogram,
        sections=[_section(store, rows) for rows in summary.sections()],
    )
    store.replace(name, page.render(sheet).encode("utf-8", "replace"))


class _TopRows:
    """The first of all added rows in the order of one column. The uid breaks ties, so results are reproducible."""

    def __init__(self, column: str, direction: Direction, size: int = PAIRS_PER_SECTION) -> None:
        self.keys = [(column, direction)] if column == "uid" else [(column, direction), ("uid", "ascending")]
        self.size = size
        self.rows: pa.Table | None = None

    def add(self, batch: pa.Table) -> None:
        """Consider the rows of a batch."""
        pool = batch if self.rows is None else pa.concat_tables([self.rows, batch])
        self.rows = pool.take(pc.select_k_unstable(pool, min(self.size, pool.num_rows), self.keys)).combine_chunks()


class _OnePerBin:
    """The first pair of each similarity bin."""

    def __init__(self) -> None:
        self.rows: pa.Table | None = None

    def add(self, batch: pa.Table) -> None:
        """Consider the rows of a batch."""
        pool = batch if self.rows is None else pa.concat_tables([self.rows, batch])
        _, first = np.unique(_bins(pool), return_index=True)
        self.rows = pool.take(first[::-1]).combine_chunks()

    def spread(self) -> pa.Table:
        """PAIRS_PER_SECTION of these pairs, spread evenly from the highest bin to the lowest."""
        assert self.rows is not None
        bins = self.rows.num_rows
        return self.rows.take(np.unique(np.linspace(0, bins - 1, min(bins, PAIRS_PER_SECTION)).astype(int)))


@dataclass(frozen=True)
class _SectionRows:
    """The rows of a section, before its pictures are read."""

    title: str
    about: str
    tables: Sequence[pa.Table]
    direction: Direction = "descending"
    """The order of the similarities."""


class _Summary:
    """Collects what the sheet shows about all pairs, batch by batch."""

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.histogram: npt.NDArray[np.int64] = np.zeros((2, BINS), np.int64)  # [dropped, kept] x bins
        self.sample = _TopRows("uid", "ascending")  # uids are hashes: the lowest ones are a random sample
        self.best = _TopRows("similarity", "descending")
        self.worst = _TopRows("similarity", "ascending")
        self.above = _TopRows("similarity", "ascending", PAIRS_PER_SECTION // 2)
        self.below = _TopRows("similarity", "descending", PAIRS_PER_SECTION // 2)
        self.range = _OnePerBin()

    def add(self, batch: pa.Table) -> None:
        """Add a batch of pairs."""
        self.sample.add(batch)
        scored = batch.filter(pc.is_finite(batch["similarity"]))
        np.add.at(self.histogram, (scored["kept"].to_numpy().astype(int), _bins(scored)), 1)
        self.best.add(scored)
        self.worst.add(scored)
        if self.threshold is None:
            self.range.add(scored)
            return
        # as in rules/similarity.py
        is_above = pc.greater_equal(scored["similarity"], pa.scalar(self.threshold, pa.float32()))
        self.above.add(scored.filter(is_above))
        self.below.add(scored.filter(pc.invert(is_above)))

    def sections(self) -> Iterator[_SectionRows]:
        """The sections in page order."""
        if self.sample.rows is None:
            return
        if not self.histogram.any():
            yield _SectionRows("A sample", "Chosen at random, because no model scored these pairs.", [self.sample.rows])
            return
        yield _SectionRows("Best", "The highest similarities.", [self.best.rows])
        if self.threshold is None:
            about = "Steps of similarity: where would you draw the line?"
            yield _SectionRows("From high to low", about, [self.range.spread()])
        else:
            about = f"Nearest to the threshold of {self.threshold:.3f}, from just above to just below."
            yield _SectionRows("Borderline", about, [self.above.rows, self.below.rows])
        yield _SectionRows("Worst", "The lowest similarities.", [self.worst.rows], "ascending")


def _bins(pairs: pa.Table) -> npt.NDArray[np.int64]:
    """The histogram bin of each pair; shape (pairs,)."""
    similarity = np.asarray(pairs["similarity"], np.float64)
    return np.clip((similarity + 1) * BINS / 2, 0, BINS - 1).astype(np.int64)


def _batches(store: Store, manifests: Sequence[ShardManifest]) -> Iterator[pa.Table]:
    for manifest in manifests:
        for batch in read_table(store, manifest.files["pairs"].path, _COLUMNS).to_batches(_BATCH_ROWS):
            yield pa.Table.from_batches([batch])


def _model_name(store: Store, manifests: Sequence[ShardManifest]) -> str | None:
    """Name of the model whose scores are in `similarity`, from a Parquet footer; None if no model ran."""
    if not manifests:
        return None
    metadata = read_schema(store, manifests[0].files["pairs"].path).metadata or {}
    models = json.loads(metadata.get(b"pairmill", b"{}")).get("models", [])
    return " ".join(str(part) for part in (models[0]["name"], models[0]["pretrained"]) if part) if models else None


def _section(store: Store, rows: _SectionRows) -> Section:
    sign = 1 if rows.direction == "ascending" else -1
    pairs = [_Pair(**row) for table in rows.tables for row in table.to_pylist()]
    pairs.sort(key=lambda pair: (sign * (pair.similarity or 0.0), pair.uid))
    return Section(rows.title, rows.about, [_card(store, pair) for pair in pairs])


def _card(store: Store, pair: _Pair) -> Card:
    return Card(
        caption=pair.caption_clean,
        url=pair.url,
        similarity=pair.similarity,
        status=pair.status,
        kept=pair.kept,
        picture=_thumbnail(store, pair),
    )


def _thumbnail(store: Store, pair: _Pair) -> str | None:
    """The stored picture, small, as a data: URI. None if there is none, or if it cannot be read: `verify` says why."""
    if not pair.image_tar:
        return None
    try:
        with store.open(pair.image_tar) as tar:
            data = read_range(tar, pair.image_offset, pair.image_length)
        with Image.open(BytesIO(data), formats=_STORED_FORMATS) as picture:
            picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            small = BytesIO()
            picture.convert("RGB").save(small, "JPEG", quality=82)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return f"data:image/jpeg;base64,{b64encode(small.getvalue()).decode()}"
