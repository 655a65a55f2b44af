"""Tests `pairmill explore` by keyboard alone."""

from pathlib import Path

import pyarrow.parquet as pq
from playwright.sync_api import expect

import pairmill
from tests.integration.explore.site import Served, Tab, count


def test_pairs_can_be_labeled_by_keyboard_alone(tab: Tab, served: Served) -> None:
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
    page.keyboard.type("bug")  # in a text field, letters are not shortcuts
    expect(page.locator("#labeled")).to_have_text("1 good, 1 bad")
    served.explorer.labels.save()
    table = pq.read_table(served.explorer.store.path("labels/browser.parquet"))
    assert sorted(table["label"].to_pylist()) == [False, True]
    assert page.locator("article.pair").get_attribute("data-uid") in table["uid"].to_pylist()


def test_keys_move_to_the_next_page_and_back_and_labels_stay(tab: Tab, served: Served) -> None:
    page = tab.open(f"{served.address}/?where=original_width+%3E+0")
    expect(page.locator(".keys")).to_contain_text("turn the page at its end")
    uids = page.locator("li.card").evaluate_all("all => all.map((each) => each.dataset.uid)")
    page.keyboard.press("k")  # no card is focused, so this goes to the last one
    page.keyboard.press("g")
    expect(page.locator("li.card").last).to_have_attribute("data-label", "good")
    page.keyboard.press("j")
    page.wait_for_url(lambda url: url.endswith("?where=original_width+%3E+0&page=2"))  # the filter stays
    expect(page.locator("li.card a.picture").first).to_be_focused()
    assert page.locator("li.card").first.get_attribute("data-uid") not in uids
    page.keyboard.press("k")
    page.wait_for_url(lambda url: "page=2" not in url)
    expect(page.locator("li.card a.picture").last).to_be_focused()
    expect(page.locator("li.card").last).to_have_attribute("data-label", "good")
    assert page.locator("li.card").evaluate_all("all => all.map((each) => each.dataset.uid)") == uids
    page.keyboard.press("u")
    expect(page.locator("li.card").last).not_to_have_attribute("data-label", "good")
    page.locator("li.card a.picture").first.focus()
    page.keyboard.press("k")  # there is no page before the first
    expect(page.locator("li.card a.picture").first).to_be_focused()


def test_the_gallery_can_be_used_by_keyboard_alone(tab: Tab, served: Served, dataset: Path) -> None:
    page = tab.open(served.address)
    every = count(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("kept", exact=True)).to_be_focused()
    slider = page.get_by_label("similarity: at least").first
    slider.focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#expression")).to_have_text(f"similarity >= {slider.input_value()}")  # the last value
    slid = count(page)
    assert 0 < slid < every
    page.locator(".save summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # copy
    page.keyboard.press("Tab")
    page.keyboard.type("by-keys")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "subset=by-keys" in url)
    assert count(page) == slid == len(pairmill.open(str(dataset)).subset("by-keys"))
