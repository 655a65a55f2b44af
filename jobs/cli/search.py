"""`pairmill index` and `pairmill search`: find pairs similar to a phrase, a picture or another pair."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pairmill.jobs.cli.options import Json, Output, S3Settings
from pairmill.jobs.cli.terminal import errors, open_store, print_json, progress, say

if TYPE_CHECKING:
    from pairmill.jobs.search import SearchResult
    from pairmill.pipeline.search.matches import Match

_SCORE_WIDTH, _UID_WIDTH, _GAP = len("-0.1234"), 32, 2
"""Widths of the table's columns, in cells. On a narrow terminal, only captions and URLs are truncated."""
_MIN_URL_WIDTH = len("https://a.example")
"""If there is room for less of the URLs, the captions get it."""

Model = Annotated[
    str | None, typer.Option("--model", metavar="ALIAS", help="Model to use; by default, the dataset's first.")
]
Of = Annotated[
    Literal["image", "text"],
    typer.Option("--of", metavar="KIND", help="The embeddings of pictures (image, the default) or of captions (text)."),
]


def index(
    output: Output,
    model: Model = None,
    of: Of = "image",
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """Index the embeddings of a dataset.

    Run it again after a retry or when there are more shards: it indexes only what is new. If it is interrupted, run the
    same command again to resume. Small datasets need no index.
    """
    from dataclasses import asdict

    with errors():
        from pairmill.jobs.search import index as run_index
        from pairmill.pipeline.common.text import counted

        with progress("Finished parts are kept; run the same command again to resume.") as listener:
            report = run_index(open_store(output, settings), model, of, listener.step)
    counts = (("embedding", report.embeddings), ("row", report.rows), ("part", report.parts))
    embeddings, rows, parts = (counted(number, noun) for noun, number in counts)
    say(f"{embeddings} of {rows} in {parts}, {report.num_bytes / 1e6:,.1f} MB")
    say(f"{report.parts_built:,} built in this run, {report.parts_removed:,} outdated and deleted")
    if missing := report.rows - report.embeddings:
        what = "picture" if of == "image" else "caption"
        say(f"{counted(missing, 'row')} cannot be found: no embedding of the {what}")
    if report.unfinished_shards:
        shards = counted(report.unfinished_shards, "planned shard")
        say(f"{shards} not finished yet: run this command again when the dataset is finished")
    if as_json:
        print_json(asdict(report))


def search(
    output: Output,
    text: Annotated[str | None, typer.Argument(metavar="QUERY", help="Phrase to search for.")] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="FILE", help="Find pairs similar to this picture.")
    ] = None,
    uid: Annotated[
        str | None, typer.Option("--uid", metavar="UID", help="Find pairs similar to this pair of the dataset.")
    ] = None,
    model: Model = None,
    of: Of = "image",
    top: Annotated[int, typer.Option("--top", "-k", metavar="N", help="Number of rows to find.", min=1)] = 20,
    subset: Annotated[str | None, typer.Option(metavar="NAME", help="Find only rows of this subset.")] = None,
    save: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write uid, row_id and score to a Parquet file, for select.")
    ] = None,
    page: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write an HTML page with the pictures.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open that page in the browser.")] = False,
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """Find pairs similar to a query.

    Up to 100,000 rows are searched without an index; for more, run `pairmill index OUT` first.
    """
    with errors():
        from pairmill.jobs.search import Query
        from pairmill.jobs.search import search as run_search

        query = Query(text, image, uid, model, of, top, subset)
        if open_page and page is None:
            page = _temporary_page()
        with progress("Nothing was written.") as listener:
            result = run_search(open_store(output, settings), query, page, listener.step)
    _print(result)
    if save is not None:
        with errors():
            result.save(save)
    for path in (save, page):
        if path is not None:
            say(path)
    if open_page and page is not None:
        _show(page)
    if as_json:
        print_json(result.as_dict())


def _print(result: "SearchResult") -> None:
    """Print the matches as a table as wide as the terminal, then what was searched."""
    from pairmill.pipeline.pages.visible_text import visible_text

    if result.matches:
        _print_table(result.matches)
    else:
        say("nothing was found")
    for fact in result.facts():
        say(visible_text(fact, 1_000), err=True)


def _print_table(matches: Sequence["Match"]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pairmill.pipeline.common.terminal_text import PLAIN_COLUMNS, cells, table_columns
    from pairmill.pipeline.pages.visible_text import visible_text

    console = Console(width=table_columns(), highlight=False)
    urls = [visible_text(match.url or "", PLAIN_COLUMNS) for match in matches]
    free = max(0, console.width - _SCORE_WIDTH - _UID_WIDTH - 2 * _GAP)
    url_width = min(max(map(cells, urls)), free * 2 // 5)
    url_width = url_width if url_width >= _MIN_URL_WIDTH else 0
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("score", justify="right", no_wrap=True, width=_SCORE_WIDTH)
    table.add_column("uid", no_wrap=True, width=_UID_WIDTH)
    table.add_column("caption", no_wrap=True, overflow="ellipsis", max_width=free - (url_width and url_width + _GAP))
    if url_width:
        table.add_column("url", no_wrap=True, overflow="ellipsis", max_width=url_width)
    for match, url in zip(matches, urls, strict=True):
        texts = (match.uid, visible_text(match.caption or "", PLAIN_COLUMNS), *([url] if url_width else []))
        table.add_row(f"{match.score:.4f}", *map(Text, texts))
    console.print(table)


def _temporary_page() -> str:
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="pairmill-search-", suffix=".html", delete=False) as file:
        return file.name


def _show(page: str) -> None:
    import webbrowser
    from pathlib import Path

    if not webbrowser.open(Path(page).absolute().as_uri()):
        say(f"pairmill: there is no browser here; open {page} yourself", err=True)
