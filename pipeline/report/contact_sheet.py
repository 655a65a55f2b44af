"""The contact sheet: the best, the borderline and the worst pairs of an output folder, as one HTML file.

Shards are scanned batch by batch, narrow columns only, and each section keeps no more rows than it shows, so memory
does not grow with the dataset. Pictures come by one range read each and end as thumbnails inside the page.
"""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.shards import read_manifests
from pairmill.pipeline.dataset.webdataset_tar import read_range
from pairmill.pipeline.report import page
from pairmill.pipeline.report.page import Card, Section
from pairmill.schemas.manifest import ShardManifest

PAIRS_PER_SECTION = 24
THUMBNAIL_SIDE = 160
BINS = 200
"""Of the histogram over [-1, 1]: 0.01 each."""

_BATCH_ROWS = 16_384
_COLUMNS = ["uid", "url", "caption_clean", "similarity", "status", "kept", "image_tar", "image_offset", "image_length"]
_STORED_FORMATS = ("JPEG", "PNG", "WEBP")

Order = Literal["ascending", "descending"]


def write_contact_sheet(store: Store, name: str, threshold: float | None) -> None:
    """Write the sheet of what is committed in `store` under `name`, over an older one.

    `threshold` is the least similarity that was asked for; None where there was none.
    """
    manifests = list(read_manifests(store))
    scan = _Scan(threshold)
    for batch in _batches(store, manifests):
        scan.add(batch)
    statuses: Counter[str] = Counter()
    for manifest in manifests:
        statuses.update(manifest.statuses)
    text = page.render(
        title="/".join(store.root.rstrip("/").split("/")[-2:]),
        model=_model_name(store, manifests),
        threshold=threshold,
        statuses=statuses,
        histogram=scan.histogram,
        sections=[_section(store, *section) for section in scan.sections()],
    )
    store.replace(name, text.encode("utf-8", "replace"))


class _First:
    """The first rows by one column, of all that were added. Ties go by uid, so two runs choose the same."""

    def __init__(self, column: str, order: Order, most: int = PAIRS_PER_SECTION) -> None:
        self.keys = [(column, order)] if column == "uid" else [(column, order), ("uid", "ascending")]
        self.most = most
        self.rows: pa.Table | None = None

    def add(self, batch: pa.Table) -> None:
        pool = batch if self.rows is None else pa.concat_tables([self.rows, batch])
        self.rows = pool.take(pc.select_k_unstable(pool, min(self.most, pool.num_rows), self.keys)).combine_chunks()


class _Ladder:
    """One pair per bin of similarity, the first that comes; at the end, steps evenly spread from high to low."""

    def __init__(self) -> None:
        self.rows: pa.Table | None = None

    def add(self, batch: pa.Table) -> None:
        pool = batch if self.rows is None else pa.concat_tables([self.rows, batch])
        _, first = np.unique(_bins(pool), return_index=True)
        self.rows = pool.take(first[::-1]).combine_chunks()

    def steps(self) -> pa.Table:
        assert self.rows is not None
        rungs = self.rows.num_rows
        return self.rows.take(np.unique(np.linspace(0, rungs - 1, min(rungs, PAIRS_PER_SECTION)).astype(int)))


class _Scan:
    """What is kept of the pairs while the shards go by."""

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.histogram: npt.NDArray[np.int64] = np.zeros((2, BINS), np.int64)  # [dropped, kept] x bins
        self.sample = _First("uid", "ascending")  # uids are hashes: the least of them are a random choice
        self.best = _First("similarity", "descending")
        self.worst = _First("similarity", "ascending")
        self.above = _First("similarity", "ascending", PAIRS_PER_SECTION // 2)
        self.below = _First("similarity", "descending", PAIRS_PER_SECTION // 2)
        self.ladder = _Ladder()

    def add(self, batch: pa.Table) -> None:
        """Take in a batch of pairs."""
        self.sample.add(batch)
        scored = batch.filter(pc.is_finite(batch["similarity"]))
        np.add.at(self.histogram, (scored["kept"].to_numpy().astype(int), _bins(scored)), 1)
        self.best.add(scored)
        self.worst.add(scored)
        if self.threshold is None:
            self.ladder.add(scored)
            return
        is_above = pc.greater_equal(scored["similarity"], pa.scalar(self.threshold, pa.float32()))
        self.above.add(scored.filter(is_above))
        self.below.add(scored.filter(pc.invert(is_above)))

    def sections(self) -> Iterator[tuple[str, str, Sequence[pa.Table]]]:
        """(title, what it shows, its rows) in the order of the page."""
        if self.sample.rows is None:
            return
        if not self.histogram.any():
            yield "A sample", "Chosen at random, because no model scored these pairs.", [self.sample.rows]
            return
        yield "Best", "The highest similarities.", [self.best.rows]
        if self.threshold is None:
            yield "From high to low", "Steps of similarity: where would you draw the line?", [self.ladder.steps()]
        else:
            about = f"Nearest to the threshold of {self.threshold:.3f}, from just above to just below."
            yield "Borderline", about, [self.above.rows, self.below.rows]
        yield "Worst", "The lowest similarities.", [self.worst.rows]


def _bins(pairs: pa.Table) -> npt.NDArray[np.int64]:
    """Bin of the histogram of each pair."""
    similarity = np.asarray(pairs["similarity"], np.float64)
    return np.clip((similarity + 1) * BINS / 2, 0, BINS - 1).astype(np.int64)


def _batches(store: Store, manifests: Sequence[ShardManifest]) -> Iterator[pa.Table]:
    for manifest in manifests:
        with store.open(manifest.files["pairs"].path) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=_COLUMNS):
                yield pa.Table.from_batches([batch])


def _model_name(store: Store, manifests: Sequence[ShardManifest]) -> str | None:
    """Name of the model whose scores stand in `similarity`, from a footer; None where none ran."""
    if not manifests:
        return None
    with store.open(manifests[0].files["pairs"].path) as file, pq.ParquetFile(file) as parquet:
        models = json.loads((parquet.schema_arrow.metadata or {}).get(b"pairmill", b"{}")).get("models", [])
    return " ".join(str(part) for part in (models[0]["name"], models[0]["pretrained"]) if part) if models else None


def _section(store: Store, title: str, about: str, tables: Sequence[pa.Table]) -> Section:
    rows = [row for table in tables for row in table.to_pylist()]
    rows.sort(key=lambda row: (_order(title, row["similarity"]), row["uid"]))
    return Section(title, about, [_card(store, row) for row in rows])


def _order(title: str, similarity: float | None) -> float:
    """High to low, but the worst first among the worst."""
    return (similarity or 0.0) * (1 if title == "Worst" else -1)


def _card(store: Store, row: dict[str, Any]) -> Card:
    return Card(
        caption=row["caption_clean"],
        url=row["url"],
        similarity=row["similarity"],
        status=row["status"],
        kept=row["kept"],
        picture=_thumbnail(store, row) if row["image_tar"] else None,
    )


def _thumbnail(store: Store, row: dict[str, Any]) -> str | None:
    """The stored picture, small, as a data: URI; None where it cannot be read, which `verify` is there to explain."""
    try:
        with store.open(row["image_tar"]) as tar:
            data = read_range(tar, row["image_offset"], row["image_length"])
        with Image.open(BytesIO(data), formats=_STORED_FORMATS) as picture:
            picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            small = BytesIO()
            picture.convert("RGB").save(small, "JPEG", quality=82)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return f"data:image/jpeg;base64,{b64encode(small.getvalue()).decode()}"
