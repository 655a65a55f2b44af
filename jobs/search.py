"""`pairmill index` and `pairmill search`: find pairs similar to a phrase, a picture or another pair."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.local_file import new_local_file
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted, shown_path
from pairmill.pipeline.dataset.parquet import write_rows
from pairmill.pipeline.dataset.withdrawn import refuse_unfinished_purge
from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.reader.thumbnails import RowRef, Thumbnails
from pairmill.pipeline.search.build_index import IndexReport, build_index
from pairmill.pipeline.search.index import SearchIndex
from pairmill.pipeline.search.matches import (
    Match,
    find_uid,
    positions_of,
    read_matches,
    subset_mask,
)
from pairmill.pipeline.search.query import QueryModel, embed_image, embed_text, read_picture
from pairmill.pipeline.search.result_page import FoundPicture, result_page
from pairmill.pipeline.search.vector_index import Floats
from pairmill.schemas.errors import JobError
from pairmill.schemas.index import EmbeddingKind
from pairmill.schemas.job.run import RunConfig

MAX_TOP = 10_000
PAGE_PICTURES = 200
"""Maximum number of pictures on the page of a search. The page says how many further results it leaves out."""
_THUMBNAIL_SIDE = 240

MATCHES_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
"""The columns of `SearchResult.save`."""


@dataclass(frozen=True)
class Query:
    """What to search for: exactly one of `text`, `image` and `uid`."""

    text: str | None = None
    image: str | None = None
    """A picture: a local path or an `s3://` URL."""
    uid: str | None = None
    """The uid of a pair of the dataset: find the pairs whose embeddings are most similar to its own."""
    model: str | None = None
    """Alias. None: the dataset's first model."""
    of: EmbeddingKind = "image"
    """Compare with the embeddings of pictures or of captions."""
    top: int = 20
    """Number of rows to find."""
    subset: str | None = None
    """Find only rows of this subset."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""

    def __post_init__(self) -> None:
        try:  # faiss takes none of NumPy's integers
            object.__setattr__(self, "top", operator.index(self.top))
        except TypeError:
            raise JobError(f"top must be an integer, not {self.top!r}") from None

    def check(self) -> None:
        """Raise JobError if the query cannot be answered as given."""
        if sum(each is not None for each in (self.text, self.image, self.uid)) != 1:
            raise JobError("give exactly one of a phrase, --image and --uid")
        if not 1 <= self.top <= MAX_TOP:
            raise JobError(f"--top {self.top}: give a number from 1 to {MAX_TOP:,}")

    @property
    def title(self) -> str:
        """The query, as shown on the page."""
        if self.text is not None:
            return self.text
        return f"like {Path(self.image).name}" if self.image is not None else f"like {self.uid}"


@dataclass(frozen=True)
class SearchResult:
    """The most similar rows, best first."""

    output: str
    model: str
    of: EmbeddingKind
    matches: Sequence[Match]
    rows: int
    """Rows of the dataset, or of the subset."""
    rows_without_embedding: int
    """Rows of the dataset that cannot be found, because they have no embedding."""
    unfinished_shards: int
    """Planned shards that are not finished yet, whose rows cannot be found."""
    is_exact: bool
    """Whether the query was compared with all embeddings. False: an index was used, which is approximate."""
    positions: Sequence[RowRef] = ()
    """Where the matches are in the snapshot that was searched."""

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        values = {name: value for name, value in vars(self).items() if name not in ("matches", "positions")}
        return {**values, "matches": [match.as_dict() for match in self.matches]}

    def facts(self) -> Iterator[str]:
        """Yield lines of text on what was searched, and what cannot be found."""
        what = "pictures" if self.of == "image" else "captions"
        how = "exactly" if self.is_exact else "approximately, with an index"
        rows = f"{counted(self.rows, 'row')} of {shown_path(self.output)}"
        yield f"{rows} searched {how} (embeddings of {what} by {self.model})"
        if self.rows_without_embedding:
            rows = counted(self.rows_without_embedding, "row")
            yield f"{rows} of the dataset cannot be found: no embedding of the {_noun(self.of)}"
        if self.unfinished_shards:
            yield f"{counted(self.unfinished_shards, 'planned shard')} not finished yet: their rows cannot be found"

    def save(self, path: str) -> None:
        """Write uid, row_id and score of the matches to a local Parquet file, which `select` can use.

        Raises JobError if it cannot be written.
        """
        columns = [[getattr(match, name) for match in self.matches] for name in MATCHES_SCHEMA.names]
        with new_local_file(path) as target:
            write_rows(pa.table(columns, schema=MATCHES_SCHEMA), target)


def index(
    store: Store, model: str | None = None, of: EmbeddingKind = "image", on_step: OnStep = ignore_step
) -> IndexReport:
    """Build or complete the search index of a model's embeddings, for the shards that are finished now.

    Raises SearchError and DatasetError.
    """
    store.check_access()
    refuse_unfinished_purge(store)
    return build_index(Embeddings.of(Snapshot.of(store), model, of), on_step)


def search(store: Store, query: Query, page: str | None = None, on_step: OnStep = ignore_step) -> SearchResult:
    """Find the rows that are most similar to the query; with `page`, also show them on a page written to that file.

    Raises JobError, SearchError, DatasetError, ModelError.
    """
    query.check()
    store.check_access()
    on_step("reading manifests", 0, 1)
    snapshot = Snapshot.of(store)
    opened = SearchIndex.open(store, snapshot, query.model, query.of, on_step)
    allowed = None if query.subset is None else subset_mask(snapshot, query.subset)
    itself = None if query.uid is None else find_uid(snapshot, query.uid)
    vector = _vector(store, query, opened.embeddings, itself, on_step)
    rows, scores = opened.search(vector, query.top + (itself is not None), allowed)
    found = [
        (place, score)
        for place, score in zip(
            positions_of(snapshot, rows[rows >= 0].tolist()), scores[rows >= 0].tolist(), strict=True
        )
        if place != itself
    ][: query.top]
    places = [place for place, _ in found]
    result = SearchResult(
        output=store.root,
        model=opened.embeddings.alias,
        of=query.of,
        matches=read_matches(snapshot, places, [score for _, score in found]),
        rows=opened.num_rows if allowed is None else int(np.count_nonzero(allowed)),
        rows_without_embedding=opened.num_rows - opened.num_embeddings,
        unfinished_shards=snapshot.unfinished_shards,
        is_exact=opened.is_exact,
        positions=places,
    )
    if page is not None:
        on_step("reading pictures", 0, 1)
        _write_page(snapshot, query, result, page)
    return result


def _vector(store: Store, query: Query, embeddings: Embeddings, itself: RowRef | None, on_step: OnStep) -> Floats:
    """The query's embedding, float32 [1, dim]."""
    if itself is not None:
        stored = embeddings.vector(*itself)
        if stored is None:
            raise JobError(
                f"the pair {query.uid} has no embedding of its {_noun(query.of)}, so nothing can be compared with it"
            )
        return stored[None]
    body = None if query.image is None else read_picture(store.files, query.image)
    on_step("loading the model", 0, 1)
    model = QueryModel.load(embeddings.contract, RunConfig(device=query.device))
    if body is not None:
        return embed_image(model, body, embeddings.snapshot.plan.job.images.max_pixels)
    return embed_text(model, query.text or "")


def _noun(kind: EmbeddingKind) -> str:
    return "picture" if kind == "image" else "caption"


def _write_page(snapshot: Snapshot, query: Query, result: SearchResult, path: str) -> None:
    refs = result.positions[:PAGE_PICTURES]
    thumbnails = Thumbnails(snapshot, _THUMBNAIL_SIDE)
    try:
        made = thumbnails.of(refs)
    finally:
        thumbnails.close()
    found = [
        FoundPicture(match.score, match.uid, match.caption, match.url, made[ref])
        for match, ref in zip(result.matches, refs, strict=False)
    ]
    facts = [*result.facts()]
    if left_out := len(result.matches) - len(found):
        facts.append(f"{counted(left_out, 'more result')} not shown here")
    with new_local_file(path) as target:
        target.write(result_page(query.title, facts, found).encode())
