"""A running explorer for the tests: its dataset, its server, and pages in Chromium."""

import io
import random
import subprocess
from dataclasses import dataclass

from playwright.sync_api import BrowserContext, Page, Request, expect

from pairmill.pipeline.encode.tiny.draw import caption, random_scene, render
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.security import Guard

PAIRS = 150
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
PAGES = ["/", "/rejects", "/duplicates", "/compare", "/search", "/live", "/search?q=a+red+circle", "/nothing",
         "/?where=widht+%3E+3", "/?min%3Awidth=99999", "/?rows=pairs&order=around&around=0.1"]  # fmt: skip

HOSTILE = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 2'>",
    "\"'><svg onload=window.ran=3>",
    "</title></textarea></style><script>window.ran = 4</script>",
    "javascript:window.ran=5",
    "{{ 7*7 }} {% raw %} ${window.ran=6}",
    "\u202egnp.exe\u202c and \u200bzero\u200dwidth\ufeff",
    "\x1b[31mred\x1b[0m\x07 \x9b2J",
    "=cmd|'/C calc'!A0",
    "../../../etc/passwd",
    "https://evil.example/x.png",
    "a" * 10_000,
    "\u0645\u0631\u062d\u0628\u0627 right to left",
]


def drawn(count: int) -> list[dict[str, object]]:
    """Rows with generated drawings. The first rows have hostile captions and URLs."""
    rng = random.Random(7)
    rows: list[dict[str, object]] = []
    for number in range(count):
        scene = random_scene(rng)
        file = io.BytesIO()
        render(scene, rng, 200 + number, 180).save(file, "PNG")
        hostile = HOSTILE[number] if number < len(HOSTILE) else None
        rows.append({
            "image": file.getvalue() if number % 20 != 19 else b"not a picture",
            "caption": hostile or caption(scene, rng),
            "url": f"https://pictures.example/{(hostile or str(number))[:500]}",
            "<b onclick=alert(1)>": hostile or "plain",
            "a b'\"": number,
            "grade": ["", "low", "high"][number % 3],
        })  # fmt: skip
    rows[20] = {**rows[21], "caption": "the same picture again"}
    return rows


@dataclass
class Served:
    """A running explorer."""

    address: str
    explorer: Explorer
    guard: Guard
    process: subprocess.Popen[str] | None = None


@dataclass
class Tab:
    """A page, with the URLs that it requested and its errors."""

    page: Page
    requests: list[str]
    errors: list[str]

    def open(self, address: str) -> Page:
        self.page.goto(address)
        return self.page


def new_tab(context: BrowserContext) -> Tab:
    made = Tab(context.new_page(), [], [])

    def asked(request: Request) -> None:
        made.requests.append(request.url)

    made.page.on("request", asked)
    made.page.on("pageerror", lambda error: made.errors.append(str(error)))
    made.page.on("dialog", lambda dialog: made.errors.append(f"dialog: {dialog.message}"))
    made.page.on(
        "console",
        lambda line: made.errors.append(line.text) if "Content Security Policy" in line.text else None,
    )
    return made


def count(page: Page) -> int:
    return int(page.locator("#count").inner_text().replace(",", ""))


def wait_for_count(page: Page, before: int) -> int:
    expect(page.locator("#count")).not_to_have_text(f"{before:,}")
    page.wait_for_function("!document.querySelector('#filters').classList.contains('busy')")
    return count(page)


def slide(page: Page, label: str, value: float) -> None:
    page.get_by_label(label).first.evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})) }", value
    )
