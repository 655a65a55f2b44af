"""Tests the use of `pairmill explore` in Chromium: filters, subsets, search and lists."""

import io
from pathlib import Path

from playwright.sync_api import expect

import pairmill
from tests.integration.explore.site import (
    PAIRS,
    Served,
    Tab,
    count,
    slide,
    wait_for_count,
)


def test_a_saved_subset_has_as_many_pairs_as_the_slider_showed(tab: Tab, served: Served, dataset: Path) -> None:
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
    assert pairmill.status(str(dataset)).kept  # pairmill can still read the output
    with page.expect_download() as download:
        page.get_by_role("link", name="select.yaml").click()
    text = Path(download.value.path()).read_text()
    assert "where: original_width >= 260 and (not contains(caption, 'heart'))" in text
    page.reload()
    assert count(page) == final
    assert not tab.errors


def test_rows_with_an_empty_text_can_be_chosen(tab: Tab, served: Served) -> None:
    page = tab.open(served.address)
    every = count(page)
    page.locator("summary", has_text="Other columns").click()
    page.locator("[data-column=grade]").get_by_label("empty").check()
    chosen = wait_for_count(page, every)
    assert 0 < chosen < every
    expect(page.locator("#expression")).to_have_text("grade == ''")
    page.wait_for_url(lambda url: "grade" in url)
    page.reload()
    assert count(page) == chosen
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


def test_every_picture_of_a_page_is_read_once(tab: Tab, served: Served) -> None:
    served.explorer.generations = {}
    served.explorer.reload()  # so that everything is read again
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


def test_search_by_text_and_by_picture_finds_the_drawn_picture(tab: Tab, served: Served, dataset: Path) -> None:
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


def test_rejects_duplicates_and_the_comparison_of_two_subsets_are_shown(
    tab: Tab, served: Served, dataset: Path
) -> None:
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
