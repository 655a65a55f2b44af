"""Tests that `pairmill explore` is safe from hostile captions and other origins, and accessible."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser

import pairmill
from tests.integration.browser import serious_violations
from tests.integration.explore.site import DESKTOP, HOSTILE, PAGES, PHONE, Served, Tab


def test_hostile_captions_names_and_urls_are_shown_as_text_and_request_nothing(tab: Tab, served: Served) -> None:
    uids = [row["uid"] for row in pairmill.open(str(served.explorer.store.root)).rows(["uid"], pictures=False)]
    pages = [*PAGES, *(f"/pair/{uid}" for uid in uids[: len(HOSTILE)])]
    pages += [f"/?where={quote(text[:300])}" for text in HOSTILE] + [
        f"/search?q={quote(text[:400])}" for text in HOSTILE
    ]
    pages += [f"/?has:caption={quote(text[:300])}" for text in HOSTILE] + [f"/?sort={quote(HOSTILE[1])}"]
    shown = ""
    for address in pages:
        page = tab.open(served.address + address)
        assert page.evaluate("window.ran") is None
        shown += page.inner_text("body")
        assert not page.evaluate(
            "document.querySelectorAll('main script, [onerror], [onload], [onclick], [style]').length"
        )
    page.wait_for_load_state("networkidle")
    assert not tab.errors
    assert all(url.startswith(served.address) for url in tab.requests)
    for text in HOSTILE[:6]:
        assert text[:100] in shown
    assert not set(shown) & set("\u202e\u200b\u200d\ufeff\x1b\x07\x9b")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_page_has_a_serious_accessibility_problem_or_is_wider_than_the_screen(
    browser: Browser, served: Served, scheme: str, size: dict[str, int]
) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")  # type: ignore[arg-type]
    page, found = context.new_page(), {}
    uid = pairmill.open(str(served.explorer.store.root)).table("uid")["uid"][0].as_py()
    for address in [*PAGES, f"/pair/{uid}"]:
        page.goto(served.address + address)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
        if address == "/":
            page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        if problems := serious_violations(page):
            found[address] = problems
    context.close()
    assert not found


def test_the_accessibility_check_finds_problems(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content(
        "<!doctype html><title>x</title><main><input><p style='color: #ccc; background: #fff'>pale</p></main>"
    )
    found = {each.partition(":")[0] for each in serious_violations(page)}
    page.close()
    assert found == {"html-has-lang", "label", "color-contrast"}


def test_a_page_from_another_origin_can_read_and_change_nothing(browser: Browser, served: Served) -> None:
    script = """async (address) => {
        const tries = {};
        const read = async (name, options) => {
            try { tries[name] = (await (await fetch(address, options)).text()).length }
            catch { tries[name] = 'nothing' }
        };
        await read('fetch', {});
        await read('opaque', {mode: 'no-cors'});
        await read('form', {method: 'POST', mode: 'no-cors', body: new URLSearchParams({name: 'stolen'})});
        for (const tag of ['img', 'script', 'iframe']) {
            tries[tag] = await new Promise((done) => {
                const made = document.createElement(tag);
                made.onload = () => done(tag === 'iframe' ? made.contentDocument : 'loaded');
                made.onerror = () => done('nothing');
                made.src = address + (tag === 'img' ? '/picture/0/0' : tag === 'script' ? '/static/page.js' : '/');
                document.body.append(made);
                setTimeout(() => done('nothing'), 3000);
            });
        }
        return tries;
    }"""
    with other_origin() as address:
        page = browser.new_page()
        page.goto(address)
        found = page.evaluate(script, served.address)
        page.close()
    assert set(found.values()) <= {"nothing", 0, None}, found  # 0: a response that the page cannot read
    assert not served.explorer.store.exists("subsets/stolen/selection.json")


class other_origin:
    """A web server with an empty page on another port."""

    def __enter__(self) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<!doctype html><body>")

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
