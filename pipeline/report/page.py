"""Renders the contact sheet as HTML: one file that runs no scripts and loads nothing.

Captions and URLs are untrusted. All text goes through `_text`; if anything slips through, a Content-Security-Policy
forbids everything but inline styles and data: pictures.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from pairmill.schemas.status import Status

CAPTION_CHARS = 180
URL_CHARS = 120

# Control, direction, invisible and private-use characters: they can reverse or hide the text after them.
_DECEPTIVE_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e0fff]"
)
_TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_WIDTH, _HEIGHT, _AXIS, _TOP = 560, 330, 26, 20  # of the histogram, in SVG user units
_MAX_BARS = 60

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}: contact sheet</title>
<style>
{css}</style>
</head>
<body>
<header>
<p class="eyebrow">Contact sheet</p>
<h1>{title}</h1>
<dl class="facts">{facts}</dl>
</header>
<main>
<div class="overview">
<section class="panel"><h2>Similarity</h2>
{histogram}
</section>
<section class="panel"><h2>What became of the rows</h2>
{funnel}
</section>
</div>
{sections}
</main>
<footer>Written by pairmill. Pictures belong to their owners.</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Card:
    """One pair. `picture` is a data: URI, None if there is nothing to show."""

    caption: str | None
    url: str | None
    similarity: float | None
    status: str
    kept: bool
    picture: str | None


@dataclass(frozen=True)
class Section:
    """Pairs under a title."""

    title: str
    about: str
    cards: Sequence[Card]


@dataclass(frozen=True, eq=False)
class Page:
    """Everything that the sheet shows."""

    title: str
    model: str | None
    threshold: float | None
    statuses: Mapping[str, int]
    histogram: npt.NDArray[np.int64]
    """[dropped, kept] x bins over [-1, 1]; all zero if no model ran."""
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The whole page as HTML."""
    rows, kept = sum(page.statuses.values()), page.statuses.get(Status.OK, 0)
    facts = {
        "rows in": f"{rows:,}",
        "kept": f"{kept:,}",
        "share kept": f"{kept / max(rows, 1):.1%}",
        "model": page.model or "none",
        "threshold": "none" if page.threshold is None else f"{page.threshold:.3f}",
    }
    return _PAGE.format(
        css=resources.files("pairmill.pipeline.report").joinpath("contact_sheet.css").read_text("utf-8"),
        title=_text(page.title, URL_CHARS),
        facts="".join(f"<div><dt>{name}</dt><dd>{_text(value, URL_CHARS)}</dd></div>" for name, value in facts.items()),
        histogram=_histogram(page.histogram, page.threshold),
        funnel=_funnel(page.statuses, rows),
        sections="\n".join(map(_section, page.sections)) or '<p class="none">No pairs are committed yet.</p>',
    )


def _text(text: str | None, max_chars: int) -> str:
    """Untrusted text as HTML: truncated and escaped, with deceptive characters shown as U+FFFD."""
    short = (text or "")[: max_chars + 1]
    if len(short) > max_chars:
        short = short[: max_chars - 1] + "…"
    return html.escape(_DECEPTIVE_CHARACTERS.sub("\ufffd", short))


def _section(section: Section) -> str:
    cards = "\n".join(map(_card, section.cards))
    return (
        f"<section><h2>{html.escape(section.title)} <small>{html.escape(section.about)}</small></h2>\n"
        f'<ul class="cards">\n{cards}\n</ul></section>'
    )


def _card(card: Card) -> str:
    verdict = "kept" if card.kept else "dropped"
    picture = f'<img src="{card.picture}" alt="" loading="lazy">' if card.picture else "<span>no picture stored</span>"
    similarity = "no score" if card.similarity is None else f"{card.similarity:.3f}"
    reason = "kept" if card.kept else _text(card.status.replace("_", " "), URL_CHARS)
    caption = (
        f'<p class="caption">{_text(card.caption, CAPTION_CHARS)}</p>'
        if card.caption
        else '<p class="none">no caption</p>'
    )
    return (
        f'<li class="card {verdict}"><div class="picture">{picture}</div>'
        f'<div class="line"><b>{similarity}</b><span class="chip">{reason}</span></div>'
        f'{caption}<p class="url">{_text(card.url, URL_CHARS)}</p></li>'
    )


def _histogram(histogram: npt.NDArray[np.int64], threshold: float | None) -> str:
    """Inline SVG: pairs per similarity as stacked bars, dropped below kept, and the threshold as a line."""
    used = np.flatnonzero(histogram.any(axis=0))
    if not used.size:
        return '<p class="none">No model ran, so there are no similarities to show.</p>'
    bins = histogram.shape[1]
    per_bar = next(n for n in range(1, bins + 1) if bins % n == 0 and np.ptp(used) / n < _MAX_BARS)
    bars = histogram.reshape(2, bins // per_bar, per_bar).sum(axis=2)  # [dropped, kept] x bars
    width = 2 * per_bar / bins
    low, high = used[0] // per_bar * width - 1, (used[-1] // per_bar + 1) * width - 1
    if threshold is not None:
        low, high = min(low, threshold - width), max(high, threshold + width)
    scale, base = _WIDTH / (high - low), _HEIGHT - _AXIS
    parts = [
        _bar((index * width - 1 - low) * scale, width * scale - 1, dropped, kept, int(bars.sum(axis=0).max()))
        for index, (dropped, kept) in enumerate(bars.T)
    ]
    parts.append(f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{base}" y2="{base}"/>')
    parts += [_tick((value - low) * scale, base, f"{value:g}") for value in _ticks(low, high)]
    if threshold is not None:
        parts.append(_threshold_line((threshold - low) * scale, threshold))
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Histogram of similarities">'
    legend = '<p class="legend"><i class="kept"></i>kept <i class="dropped"></i>dropped</p>'
    return f"{svg}{''.join(parts)}</svg>{legend}"


def _bar(x: float, width: float, dropped: int, kept: int, tallest: int) -> str:
    """One stacked bar, with the counts as a tooltip."""
    if not dropped + kept:
        return ""
    base = _HEIGHT - _AXIS
    unit = (base - _TOP) / tallest
    rects = []
    for kind, count, top in (("dropped", dropped, dropped), ("kept", kept, dropped + kept)):
        geometry = f'x="{x:.1f}" y="{base - top * unit:.1f}" width="{width:.1f}" height="{count * unit:.1f}"'
        rects.append(f'<rect class="{kind}" {geometry}/>' if count else "")
    return f"<g><title>{kept:,} kept, {dropped:,} dropped</title>{''.join(rects)}</g>"


def _ticks(low: float, high: float) -> list[float]:
    """At most ten round values from low to high."""
    step = next((step for step in _TICK_STEPS if (high - low) / step <= 10), _TICK_STEPS[-1])
    return [round(index * step, 2) for index in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _tick(x: float, base: float, label: str) -> str:
    return f'<text class="tick" x="{min(max(x, 14), _WIDTH - 14):.1f}" y="{base + 18}">{label}</text>'


def _threshold_line(x: float, threshold: float) -> str:
    side = "end" if x > _WIDTH / 2 else "start"
    label = x - 6 if side == "end" else x + 6
    return (
        f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 16}" y2="{_HEIGHT - _AXIS}"/>'
        f'<text class="threshold" text-anchor="{side}" x="{label:.1f}" y="12">threshold {threshold:.3f}</text>'
    )


def _funnel(statuses: Mapping[str, int], rows: int) -> str:
    """One line per Status that rejected rows, in the order of the checks, with the number of rows left after it."""
    lines = [_funnel_line("rows in", "", rows, rows, "all")]
    left = rows
    for status in Status:
        if status is Status.OK or not (count := statuses.get(status, 0)):
            continue
        left -= count
        lines.append(_funnel_line(status.replace("_", " "), f"−{count:,}", left, rows, "left"))
    lines.append(_funnel_line("kept", "", statuses.get(Status.OK, 0), rows, "kept"))
    return f'<table class="funnel">{"".join(lines)}</table>'


def _funnel_line(name: str, lost: str, left: int, rows: int, kind: str) -> str:
    share = 100 * left / max(rows, 1)
    return (
        f'<tr class="{kind}"><th scope="row">{html.escape(name)}</th><td class="lost">{lost}</td>'
        f'<td class="bar"><i style="width:{share:.1f}%"></i></td><td>{left:,}</td></tr>'
    )
