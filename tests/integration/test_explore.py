"""Tests `pairmill explore` in Chromium: with hostile captions, on a phone, by keyboard, from another origin."""

import io
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect

import pairmill
from pairmill.jobs.build import build
from pairmill.jobs.explore import ExploreOptions, explore, run_select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_subset
from pairmill.pipeline.encode.tiny.draw import caption, random_scene, render
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.security import Guard
from pairmill.schemas.errors import JobError
from pairmill.schemas.subset import SelectJob
from tests.integration.browser import chromium, serious_violations
from tests.integration.test_embed import embed_job

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
    """Rows with a drawn picture each; the first have hostile captions, names and URLs."""
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
        })  # fmt: skip
    rows[20] = {**rows[21], "caption": "the same picture again"}
    return rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("explore")
    pq.write_table(pa.Table.from_pylist(drawn(PAIRS)), folder / "in.parquet")
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        build(embed_job(folder / "out", folder / "in.parquet", shard_rows=50))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder / "out"


def in_this_process(patch: pytest.MonkeyPatch) -> None:
    """Like the fixture `plain_loop`, for a fixture of a module."""
    from pairmill.jobs.cluster.lost_shards import Outcome
    from pairmill.pipeline.stages.pipelines import Pipeline, open_stages, process_batch
    from pairmill.schemas.batch import planned_batches

    def run_shards(shards: pa.Table, pipeline: Pipeline, on_outcome: Callable[[Outcome], None], *_: object) -> None:
        stages = open_stages(pipeline)
        for batch in planned_batches(shards):
            on_outcome(Outcome(batch.info.shard.shard, process_batch(batch, stages)))
        for _spec, stage in stages:
            stage.close()

    patch.setattr("pairmill.jobs.cluster.run_shards.run_shards", run_shards)


@dataclass
class Served:
    """A running explorer."""

    address: str
    explorer: Explorer
    guard: Guard
    process: subprocess.Popen[str] | None = None


@pytest.fixture(scope="module")
def served(dataset: Path) -> Iterator[Served]:
    """The server in this process, so that tests can see what it reads."""
    ready, end, found = threading.Event(), threading.Event(), list[Served]()

    def on_ready(guard: Guard, explorer: Explorer) -> None:
        found.append(Served(guard.address.rstrip("/"), explorer, guard))
        ready.set()
        end.wait()
        raise KeyboardInterrupt

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            explore(Store(str(dataset)), ExploreOptions(port=0, labels="browser"), on_ready)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60)
    yield found[0]
    end.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@dataclass
class Tab:
    """A page that remembers what it asked for, and what went wrong."""

    page: Page
    requests: list[str]
    errors: list[str]

    def open(self, address: str) -> Page:
        self.page.goto(address)
        return self.page


@pytest.fixture
def tab(browser: Browser, served: Served) -> Iterator[Tab]:
    context = browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
    yield new_tab(context)
    context.close()


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


def test_filter_slide_save_and_find_the_subset_with_the_slider_s_count(tab: Tab, served: Served, dataset: Path) -> None:
    page = tab.open(served.address)
    every = count(page)
    assert every == len(set(pairmill.open(str(dataset)).table("uid")["uid"].to_pylist()))
    expect(page.locator("li.card")).to_have_count(60)
    page.locator("summary", has_text="Picture").click()
    slide(page, "original_width: at least", 260)
    slid = wait_for_count(page, every)
    assert 0 < slid < every
    expect(page.locator("#expression")).to_have_text("original_width >= 260")
    expect(page.locator("#results .pages")).to_contain_text(f"of {slid}")
    page.locator("[name=where]").fill("not contains(caption, 'heart')")
    final = wait_for_count(page, slid)
    expect(page.locator("#expression")).to_have_text("original_width >= 260 and (not contains(caption, 'heart'))")
    page.locator("summary", has_text="Save as subset").click()
    page.get_by_label("name").fill("slid")
    page.get_by_role("button", name="Save").click()
    page.wait_for_url(lambda url: "subset=slid" in url, timeout=10_000)
    assert count(page) == final == len(pairmill.open(str(dataset)).subset("slid"))
    expect(page.get_by_text(f"Saved {final} pairs as slid")).to_be_visible()
    assert pairmill.status(str(dataset)).kept  # the output is still one that pairmill reads
    with page.expect_download() as download:
        page.get_by_role("link", name="select.yaml").click()
    text = Path(download.value.path()).read_text()
    assert "where: original_width >= 260 and (not contains(caption, 'heart'))" in text
    page.reload()
    assert count(page) == final
    assert not tab.errors


def test_the_address_keeps_the_filters_and_mistakes_are_explained(tab: Tab, served: Served) -> None:
    page = tab.open(served.address)
    every = count(page)
    page.locator("[name=where]").fill("width > 250")
    fewer = wait_for_count(page, every)
    page.wait_for_url(lambda url: "where=width" in url)
    page.reload()
    assert count(page) == fewer
    page.locator("[name=where]").fill("widht > 250")
    expect(page.get_by_role("alert")).to_contain_text("did you mean 'width'?")
    page.locator("[name=where]").fill("")
    expect(page.locator("#count")).to_have_text(f"{every:,}")
    expect(page.locator("#problem")).to_be_hidden()


def test_hostile_captions_names_and_urls_are_plain_text_and_nothing_leaves(tab: Tab, served: Served) -> None:
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


def test_every_picture_of_a_page_is_read_once(tab: Tab, served: Served) -> None:
    served.explorer.generations = {}
    served.explorer.reload()  # forgets what was read
    shown = served.explorer.shown
    assert shown
    page = tab.open(served.address)
    page.evaluate("for (const image of document.images) image.loading = 'eager'")
    page.wait_for_load_state("networkidle")
    pictures = [url for url in tab.requests if "/picture/" in url]
    assert len(pictures) == len(set(pictures)) == 60 == shown.pictures.read
    tab.requests.clear()
    page.reload()
    page.evaluate("for (const image of document.images) image.loading = 'eager'")
    page.wait_for_load_state("networkidle")
    assert shown.pictures.read == 60


def test_pairs_are_labeled_by_keyboard_alone(tab: Tab, served: Served) -> None:
    page = tab.open(served.address)
    for key in "jjgkbjju":
        page.keyboard.press(key)
        page.wait_for_timeout(80)
    expect(page.locator("#labeled")).to_have_text("1 good, 0 bad")
    page.keyboard.press("g")
    expect(page.locator("#labeled")).to_have_text("2 good, 0 bad")
    expect(page.locator("li.card[data-label=good]")).to_have_count(2)
    page.keyboard.press("Enter")
    page.wait_for_url("**/pair/*")
    expect(page.locator("article.pair .mark")).to_have_text("good")
    page.keyboard.press("b")
    expect(page.locator("article.pair .mark")).to_have_text("bad")
    page.locator("#find").focus()
    page.keyboard.type("bug")  # letters in a field are letters
    expect(page.locator("#labeled")).to_have_text("1 good, 1 bad")
    served.explorer.labels.save()
    table = pq.read_table(served.explorer.store.path("labels/browser.parquet"))
    assert sorted(table["label"].to_pylist()) == [False, True]
    assert page.locator("article.pair").get_attribute("data-uid") in table["uid"].to_pylist()


def test_the_gallery_is_used_by_keyboard_alone(tab: Tab, served: Served, dataset: Path) -> None:
    page = tab.open(served.address)
    every = count(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("kept", exact=True)).to_be_focused()
    page.get_by_label("similarity: at least").first.focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    slid = wait_for_count(page, every)
    assert 0 < slid < every
    page.locator(".save summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # copy
    page.keyboard.press("Tab")
    page.keyboard.type("by-keys")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "subset=by-keys" in url)
    assert count(page) == slid == len(pairmill.open(str(dataset)).subset("by-keys"))


def test_search_by_text_and_by_picture_finds_the_drawn_one(tab: Tab, served: Served, dataset: Path) -> None:
    page = tab.open(served.address)
    row = pairmill.open(str(dataset)).table(["uid", "caption"]).to_pylist()[60]
    page.locator("#find").fill(row["caption"])
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/search?q=" in url)
    found = [page.locator("li.card").nth(n).get_attribute("data-uid") for n in range(10)]
    assert row["uid"] in found
    file = io.BytesIO()
    pairmill.open(str(dataset)).picture(row["uid"]).save(file, "PNG")
    page.get_by_label("By picture").set_input_files(
        {"name": "x.png", "mimeType": "image/png", "buffer": file.getvalue()}
    )
    page.get_by_role("button", name="Search").last.click()
    expect(page.locator("h2", has_text="Closest to your picture")).to_be_visible()
    assert page.locator("li.card").first.get_attribute("data-uid") == row["uid"]
    page.get_by_label("By picture").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.get_by_role("button", name="Search").last.click()
    expect(page.get_by_role("alert")).to_contain_text("the picture cannot be used")
    page = tab.open(f"{served.address}/pair/{row['uid']}")
    expect(page.locator(".near li.card")).to_have_count(24)
    assert row["uid"] not in [each.get_attribute("data-uid") for each in page.locator(".near li.card").all()]


def test_rejects_duplicates_and_two_subsets_are_shown(tab: Tab, served: Served, dataset: Path) -> None:
    page = tab.open(f"{served.address}/rejects")
    expect(page.locator("h1")).to_contain_text(f" of {PAIRS} rows were not kept")
    expect(page.locator("#parts")).to_contain_text(f"{PAIRS // 20} rows have no pair")
    page.locator("tbody a").first.click()
    expect(page.locator(".rejected li")).to_have_count(PAIRS // 20)
    expect(page.locator(".evidence").first).not_to_be_empty()
    page = tab.open(f"{served.address}/duplicates")
    expect(page.locator(".group-of").first).to_contain_text("2 pairs")
    expect(page.locator(".group-of")).to_have_count(1)
    for name, where in (("low", "original_width < 300"), ("high", "original_width >= 280")):
        pairmill.select(str(dataset), name, steps=[{"where": where}], overwrite=True)
    page = tab.open(f"{served.address}/compare?a=low&b=high")
    low, high = (
        set(pairmill.open(str(dataset)).subset(name).table("uid")["uid"].to_pylist()) for name in ("low", "high")
    )
    counts = [int(each.inner_text()) for each in page.locator(".sides .number b").all()]
    assert counts == [len(low - high), len(low & high), len(high - low)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_page_has_a_serious_barrier_or_is_wider_than_the_screen(
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


def test_the_check_of_barriers_finds_them(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content(
        "<!doctype html><title>x</title><main><input><p style='color: #ccc; background: #fff'>pale</p></main>"
    )
    found = {each.partition(":")[0] for each in serious_violations(page)}
    page.close()
    assert found == {"html-has-lang", "label", "color-contrast"}


def test_a_page_of_another_origin_gets_nothing(browser: Browser, served: Served) -> None:
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
    assert set(found.values()) <= {"nothing", 0, None}, found  # 0: an answer that the page cannot read
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


def test_the_live_page_shows_shards_that_arrive(browser: Browser, tmp_path: Path, dataset: Path) -> None:
    """Shards are committed while the page is open: their manifests are moved into place one by one."""
    import shutil

    output = tmp_path / "out"
    shutil.copytree(dataset, output, ignore=shutil.ignore_patterns("subsets", "labels"))
    manifests = sorted((output / "manifests").iterdir())
    for path in manifests:
        path.rename(tmp_path / path.name)
    process = command(["explore", str(output), "--port", "0"], tmp_path)
    address = process.stdout.readline().split()[-1].rstrip("/")  # type: ignore[union-attr]
    page = browser.new_page()
    page.goto(address)
    expect(page.locator("h1")).to_have_text("No pairs yet")
    page.goto(f"{address}/live")
    expect(page.locator("#shards-done")).to_have_text("0")
    for number, path in enumerate(manifests, 1):
        (tmp_path / path.name).rename(path)
        expect(page.locator("#shards-done")).to_have_text(str(number), timeout=10_000)
        assert page.locator("#newest img").first.evaluate("(image) => image.decode().then(() => true, () => false)")
    expect(page.locator("#live-status")).to_have_text("finished")
    expect(page.locator("#reload")).to_be_visible(timeout=10_000)
    expect(page.locator("#reload-text")).to_have_text("3 new shards")
    page.get_by_role("button", name="Reload").click()
    page.wait_for_url(f"{address}/")
    assert count(page) > 0
    page.close()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip().splitlines()[-1]) == (130, "Stopped. Saved subsets and labels stay.")


def command(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pairmill", *arguments], cwd=folder, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_command_serves_at_once_and_ctrl_c_keeps_the_labels(dataset: Path, tmp_path: Path) -> None:
    import urllib.request

    process = command(["explore", str(dataset), "--port", "0", "--labels", "by-command"], tmp_path)
    address = process.stdout.readline().split()[-1]  # type: ignore[union-attr]
    page = urllib.request.urlopen(address, timeout=10).read().decode()
    token = page.partition('name="pairmill-token" content="')[2].partition('"')[0]
    uid = page.partition('data-uid="')[2].partition('"')[0]
    body = f"token={token}&uid={uid}&label=good".encode()
    asked = urllib.request.Request(f"{address}api/label", body, {"Origin": address.rstrip("/")})
    assert urllib.request.urlopen(asked, timeout=10).status == 200
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == 143
    assert "Traceback" not in err
    assert pq.read_table(dataset / "labels/by-command.parquet")["uid"].to_pylist() == [uid]
    again = command(["explore", str(dataset), "--port", "0", "--labels", "by-command"], tmp_path)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 1
    assert err.count("\n") == 1 and "belongs to another session" in err


def test_a_large_select_runs_in_a_process_of_its_own(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(dataset))
    job = SelectJob.model_validate({"dataset": store.root, "name": "wide", "steps": [{"where": "width >= 260"}]})
    here = run_select(job, True)
    monkeypatch.setattr("pairmill.jobs.explore.ROWS_FOR_RAY", 0)
    assert run_select(job, True).rows_out == here.rows_out
    assert run_select(job, False).rows_out == read_subset(store, "wide").rows_out == here.rows_out
    with pytest.raises(JobError, match="already has a subset 'wide'"):
        run_select(job, False)
