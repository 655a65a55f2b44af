"""Runs the step `leak`: drops the rows that overlap with an evaluation set, and reports the pictures that it found."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.known.embeddings import chosen_model, column_of
from pairmill.pipeline.known.keys import columns_of
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.leak.evaluation_pictures import EvaluationPictures
from pairmill.pipeline.leak.evaluation_set import (
    Entries,
    EvaluationSet,
    sha256_entries,
    shard_hashes,
    vector_entries,
)
from pairmill.pipeline.leak.matches import MATCH, LeakScan, Matches, merge
from pairmill.pipeline.leak.shared_entries import shared_entries
from pairmill.pipeline.leak.ways import WAYS
from pairmill.pipeline.select.expression_errors import require_columns
from pairmill.pipeline.select.not_compared import NotCompared
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.tasks import Handle, Tasks
from pairmill.pipeline.select.unreadable_hashes import require_hashes
from pairmill.schemas.known import ValueKind
from pairmill.schemas.leak import DEFAULT_THRESHOLD, MAX_PAIRS, Leak, LeakCounts, LeakKind, LeakPair, LeakReport
from pairmill.schemas.subset import StepReport

MAX_ENTRIES = 2_000_000
"""Maximum number of entries in one scan: up to 300 bytes each in every process. With more, there are several scans."""

OVERLAP_SCHEMA = pa.schema(
    [
        pa.field("item_uid", pa.string(), nullable=False),
        pa.field("item_row_id", pa.string(), nullable=False),
        pa.field("by", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("uid", pa.string(), nullable=False),  # of the nearest row
        pa.field("distance", pa.int32()),
        pa.field("cosine", pa.float64()),
    ]
)
"""`subsets/NAME/overlaps/`: one row per row of an evaluation picture and way in which it was found."""


@dataclass
class LeakStep:
    """Drops the rows that overlap with an evaluation set."""

    evaluation: EvaluationSet
    model: str = field(default="", init=False)
    """Alias of the model whose embeddings are compared."""
    overlap: pa.Table = field(default_factory=OVERLAP_SCHEMA.empty_table, init=False)
    """The pictures found, with OVERLAP_SCHEMA."""
    found: LeakReport | None = field(default=None, init=False)

    @classmethod
    def open(cls, files: Files, leak: Leak) -> "LeakStep":
        """Open the evaluation set. Raises StepError if it cannot be used."""
        return cls(EvaluationSet.open(leak, files))

    @property
    def leak(self) -> Leak:
        """The settings of the step."""
        return self.evaluation.leak

    @property
    def columns(self) -> frozenset[str]:
        """The columns to compare; the column with embeddings only once the model is known."""
        names = frozenset[str]().union(*(self._columns_of(kind) for kind in self.leak.by))
        return names - {"pdq_quality"}

    def _columns_of(self, kind: LeakKind) -> frozenset[str]:
        if kind != "embedding":
            return columns_of(kind)
        model = self.model or self.leak.model
        return frozenset({column_of(kind, model)} if model else ())

    def check(self, schema: pa.Schema) -> None:
        """Check that the dataset has the columns. Raises ExpressionError and StepError."""
        if "embedding" in self.leak.by:
            try:
                self.model = chosen_model(schema, self.leak.model)
            except KnownError as error:
                raise StepError(str(error)) from None
        require_columns(schema, self.columns)
        require_hashes(schema, self.columns)

    def run(self, selector: Selector, number: int) -> None:
        """Hash the evaluation pictures, and look the rows up in separate scans, each of which ends before its file is
        deleted. Raises StepError and DatasetError if the evaluation set cannot be used."""
        if self.evaluation.snapshot.store.root == selector.chunks[0].store.root:
            raise StepError(f"{self.leak.against} is the dataset itself: set `against` to the evaluation set")
        vectors = self.evaluation.checked_vectors(selector.chunks[0], self.model) if self.model else ""
        hashes: list[ValueKind] = ["pdq"] if "pdq" in self.leak.by else []  # every pair has the other hashes
        embeddings = {"embedding": self._column("embedding")} if vectors else {}
        not_compared = NotCompared(hashes, embeddings).count(selector) if hashes or embeddings else {}
        pictures, digests = EvaluationPictures.read(self.evaluation), list[str]()
        entries, plain = _hashes(self.evaluation, pictures, selector.tasks)
        if "sha256" in self.leak.by:
            entries["sha256"] = sha256_entries(pictures.items)
        if vectors:
            entries["embedding"] = vector_entries(self.evaluation, pictures.new, vectors)
        drops: list[list[Handle[np.ndarray]]] = [[] for _ in selector.chunks]
        first_ways, matches = list[np.ndarray](), np.zeros(0, MATCH)
        for kind, all_entries in entries.items():
            for part in _parts(all_entries):
                with shared_entries(
                    selector.chunks[0].store, kind, self._column(kind), self._limit(kind), part
                ) as shared:
                    digests.append(f"{kind} {self._limit(kind)} {shared.file.blake2b}")
                    results = selector.scan(LeakScan(shared))
                for drop, (rows, ways, found) in zip(drops, results, strict=True):
                    drop.append(rows)
                    rows_found, ways_found, matches_found = selector.tasks.get([rows, ways, found])
                    first_ways.append(_row_ways(rows_found, ways_found))
                    matches = merge(np.concatenate([matches, matches_found]))
        selector.drop(number, drops)
        self.overlap = _overlap_table(matches, pictures)
        blake2b = hashlib.blake2b("\n".join(digests).encode(), digest_size=16).hexdigest()
        self.found = LeakReport(
            items=pictures.items.num_rows,
            items_hit=len(np.unique(matches["item"])),
            plain_items=plain,
            rejected_items=pictures.rejected,
            missing_items=pictures.missing,
            hashes={kind: len(each) for kind, each in entries.items()},
            found=list(_counts(first_ways, matches)),
            nearest=list(_nearest(selector, pictures.items, matches)),
            not_compared=not_compared,
            blake2b=blake2b,
        )

    def _column(self, kind: LeakKind) -> str:
        return column_of(kind, self.model) if kind == "embedding" else kind

    def _limit(self, kind: LeakKind) -> float:
        if kind == "embedding":
            return DEFAULT_THRESHOLD if self.leak.threshold is None else self.leak.threshold
        return self.leak.hashes.get(kind, 0)

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """Add the overlap to the report, with the earlier digest if the evaluation set has changed since."""
        assert self.found is not None
        before = earlier.leak.blake2b if earlier and earlier.leak else None
        found = self.found.model_copy(update={"earlier_blake2b": before if before != self.found.blake2b else None})
        return report.model_copy(update={"leak": found})


def _hashes(
    evaluation: EvaluationSet, pictures: EvaluationPictures, tasks: Tasks
) -> tuple[dict[LeakKind, Entries], int]:
    """(hashes of all pictures, made by the workers; number of pictures that were too plain to hash)."""
    hashes = evaluation.leak.hashes
    if not hashes:
        return {}, 0
    calls = [(evaluation, position, new) for position, new in enumerate(pictures.new) if len(new.items)]
    shards = tasks.get(tasks.map(shard_hashes, calls))
    found = {kind: np.concatenate([shard.entries[kind] for shard in shards]) for kind in hashes}
    return found, sum(shard.plain for shard in shards)


def _parts(entries: Entries) -> Iterator[Entries]:
    """The entries in parts of at most MAX_ENTRIES, or more for a single picture. All entries of a picture are in the
    same part."""
    start = 0
    while start < len(entries):
        end = min(start + MAX_ENTRIES, len(entries))
        if end < len(entries):
            of_next = int(np.searchsorted(entries["item"], entries["item"][end]))
            end = of_next if of_next > start else int(np.searchsorted(entries["item"], entries["item"][end], "right"))
        yield entries[start:end]
        start = end


_ROW_WAY = np.dtype([("row_index", "<i8"), ("way", "i1")])


def _row_ways(rows: np.ndarray, ways: np.ndarray) -> np.ndarray:
    found = np.zeros(len(rows), _ROW_WAY)
    found["row_index"], found["way"] = rows, ways
    return found


def _counts(first_ways: list[np.ndarray], matches: Matches) -> Iterator[LeakCounts]:
    """The counts for each way that found anything."""
    every = np.sort(np.concatenate([np.zeros(0, _ROW_WAY), *first_ways]), order=["row_index", "way"])
    is_first = np.ones(len(every), np.bool_)
    is_first[1:] = every["row_index"][1:] != every["row_index"][:-1]
    rows = Counter[int](every["way"][is_first].tolist())
    items = Counter[int](matches["way"].tolist())
    for number, way in enumerate(WAYS):
        if items[number]:
            yield LeakCounts(by=way.by, variant=way.variant, rows=rows[number], items=items[number])


def _nearest(selector: Selector, items: pa.Table, matches: Matches) -> Iterator[LeakPair]:
    """The nearest pairs for each way. Each picture appears once, for the first way that found it."""
    _, first = np.unique(matches["item"], return_index=True)
    named = matches[first]
    ordered = named[np.lexsort((named["item"], named["near"], named["way"]))]
    taken = Counter[int]()
    for match in ordered:
        number = int(match["way"])
        if taken[number] == MAX_PAIRS:
            continue
        taken[number] += 1
        row_index = int(match["row_index"])
        chunk = selector.chunks[bisect_right(selector.chunk_starts, row_index) - 1]
        row = chunk.read_rows(np.array([row_index]), frozenset({"row_id", "url"})).to_pylist()[0]
        item = items.slice(int(match["item"]), 1).to_pylist()[0]
        yield LeakPair(
            item_row_id=item["row_id"],
            item_uid=item["uid"],
            item_url=clean_text(item["url"]),
            row_id=row["row_id"],
            url=clean_text(row["url"]),
            by=WAYS[number].by,
            variant=WAYS[number].variant,
            distance=_distance(match),
            cosine=_cosine(match),
        )


def _distance(match: np.void) -> int | None:
    return int(match["near"]) if WAYS[match["way"]].by in ("phash", "pdq") else None


def _cosine(match: np.void) -> float | None:
    return -float(match["near"]) if WAYS[match["way"]].by == "embedding" else None


def _overlap_table(matches: Matches, pictures: EvaluationPictures) -> pa.Table:
    positions, row_indices = pictures.rows_of(matches["item"])
    rows, matches = pictures.rows.take(pa.array(row_indices)), matches[positions]
    ways = [WAYS[number] for number in matches["way"].tolist()]
    columns = {
        "item_uid": rows["uid"],
        "item_row_id": rows["row_id"],
        "by": [way.by for way in ways],
        "variant": [way.variant for way in ways],
        "rows": matches["rows"],
        "uid": [uid.decode() for uid in matches["uid"].tolist()],
        "distance": [_distance(match) for match in matches],
        "cosine": [_cosine(match) for match in matches],
    }
    return pa.table(columns, schema=OVERLAP_SCHEMA)
