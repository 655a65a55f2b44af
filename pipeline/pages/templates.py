"""Provides the Jinja environment of all pages. Everything that a template prints is escaped."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.pages.visible_text import visible_text

_DEFAULT_CHARS = 400


@cache
def environment() -> Environment:
    """The Jinja environment. Templates are `NAME.html.j2` in `pipeline/pages/templates`; whole pages include
    `style.css` from there.

    Filters: `visible(max_chars)` for untrusted text or None, `count` for numbers (12,345), and `share` for fractions
    (12.3%). Function: `pairmill_command(*words)`, quoted for a shell. A missing variable is an error.
    """
    made = Environment(
        loader=PackageLoader("pairmill.pipeline.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(visible=_visible, count=_count, share=_share)
    made.globals["pairmill_command"] = pairmill_command
    return made


def _visible(value: object, max_chars: int = _DEFAULT_CHARS) -> str:
    return "" if value is None else visible_text(str(value), max_chars)


def _count(number: int) -> str:
    return f"{number:,}"


def _share(fraction: float) -> str:
    return f"{fraction:.1%}"
