"""Renders the results of a search as a page: the pictures, best first, with score, caption, URL and uid."""

from collections.abc import Sequence
from dataclasses import dataclass

from pairmill.pipeline.pages.templates import environment
from pairmill.pipeline.reader.thumbnails import Thumbnail


@dataclass(frozen=True)
class FoundPicture:
    """One result. Caption and URL are untrusted text."""

    score: float
    uid: str
    caption: str | None
    url: str | None
    thumbnail: Thumbnail


def result_page(query: str, facts: Sequence[str], found: Sequence[FoundPicture]) -> str:
    """One HTML page that runs no script and loads nothing. `facts`: lines about the search."""
    template = environment().get_template("search.html.j2")
    return template.render(title=f"Search: {query}", query=query, facts=facts, found=found)
