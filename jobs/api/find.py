"""`pairmill.index` and `search`: find pairs similar to a phrase, a picture or another pair."""

import os
from uuid import UUID

from pairmill.jobs import search as searching
from pairmill.jobs.api.keywords import S3, StrPath, s3_config, suggests_keywords, text_of
from pairmill.jobs.search import Query, SearchResult
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.search.build_index import IndexReport
from pairmill.schemas.index import EmbeddingKind


@suggests_keywords
def index(
    output: StrPath, *, model: str | None = None, of: EmbeddingKind = "image", s3: S3 | None = None
) -> IndexReport:
    """Build the search index of a dataset's embeddings, in `index/`. Make the same call again to resume after an
    interruption, or to cover new shards and those that a retry has replaced.

    Args:
        output: The output folder of a build or embed, local or `s3://`.
        model: Alias of the model. None: the dataset's first model.
        of: The embeddings of pictures (`image`) or of captions (`text`).
        s3: See `open`.

    Raises:
        SearchError: There is no such model, or it has no embeddings.
        DatasetError: No shard is finished yet, or the dataset is damaged.
    """
    return searching.index(Store(os.fspath(output), s3_config(s3)), model, of)


@suggests_keywords
def search(
    output: StrPath,
    text: str | None = None,
    *,
    image: StrPath | None = None,
    uid: str | UUID | None = None,
    model: str | None = None,
    of: EmbeddingKind = "image",
    top: int = 20,
    subset: str | None = None,
    page: StrPath | None = None,
    s3: S3 | None = None,
) -> SearchResult:
    """Find the pairs whose embeddings are most similar to that of a phrase, a picture or another pair.

    Args:
        output: The output folder of a build or embed, local or `s3://`.
        text: The phrase to search for. Give exactly one of `text`, `image` and `uid`.
        image: The picture to search for, local or `s3://`.
        uid: The uid of a pair in the dataset: find the pairs that are similar to it.
        model: Alias of the model. None: the dataset's first model.
        of: Compare with the embeddings of pictures (`image`) or of captions (`text`).
        top: Number of rows to find.
        subset: Find only rows of this subset.
        page: Write a page with the pictures to this HTML file.
        s3: See `open`.

    Returns:
        The rows, best first. `result.save("found.parquet")` writes their uids, for `select`.

    Raises:
        JobError: The query cannot be answered as given.
        SearchError: There is no such model or uid, the picture cannot be used, or the dataset needs an index first:
            call `pairmill.index`.
        SubsetError: There is no such subset.
    """
    query = Query(text, text_of(image), None if uid is None else str(uid), model, of, top, subset)
    return searching.search(Store(os.fspath(output), s3_config(s3)), query, text_of(page))
