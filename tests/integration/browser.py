"""Chromium for the tests of pages, and axe-core, which finds problems for users of screen readers and keyboards."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

AXE_VERSION = "4.14.1"
AXE = Path(__file__).resolve().parents[2] / ".cache" / f"axe-core-{AXE_VERSION}" / "axe.min.js"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def axe() -> str:
    """The source of axe-core, downloaded once from the npm registry; npm checks its integrity."""
    if not AXE.is_file():
        AXE.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"axe-core@{AXE_VERSION}"]
        packed = subprocess.run(command, cwd=AXE.parent, check=True, capture_output=True, text=True, timeout=120)
        subprocess.run(
            ["tar", "-xzf", packed.stdout.split()[-1], "--strip-components=1", "package/axe.min.js"],
            cwd=AXE.parent, check=True,
        )  # fmt: skip
    return AXE.read_text("utf-8")


def serious_violations(page: Page) -> list[str]:
    """The serious and critical problems that axe-core finds on a page. The page's context must bypass its CSP."""
    page.evaluate(axe())
    found: dict[str, object] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
