"""The tab Rate, in a headless Chromium."""

import json
import shutil
from pathlib import Path
from typing import Any

from dfusion.storage.experiment import Experiment, Round
from tests.view.browsing import browsing, needs_browser, open_tab, tab_to
from tests.viewing import ask_people

pytestmark = needs_browser


def test_blind_comparison_by_keyboard(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "rate")
        tab_to(page, "rater")
        page.keyboard.type("Ada")
        tab_to(page, "Begin")
        page.keyboard.press("Enter")
        for n, key in enumerate("1200"):
            page.wait_for_selector(f".trialbar:has-text('{n} of 4')")
            page.wait_for_function(
                "() => [...document.querySelectorAll('.choice img')]"
                ".every(i => i.complete && i.naturalWidth)"
            )
            assert "epoch" not in page.locator(".trial").inner_html()
            page.keyboard.press(key)
        page.wait_for_selector(".results table")
        assert "4 answers by 1 rater (Ada)" in page.locator(".results").inner_text()
        rows = [json.loads(x) for x in (data / "ratings/blind.jsonl").read_text().splitlines()]
        assert [row["choice"] is None for row in rows] == [False, False, True, True]
        assert rows[0]["choice"] == rows[0]["shown"][0] and rows[1]["choice"] == rows[1]["shown"][1]


def waiting(data: Path) -> Round:
    """Let experiment "one" wait for people to score its samples."""
    ask_people(data / "one", ["pairs.json"])
    for k in (0, 1):
        shutil.rmtree(data / f"one/compare/epoch{k}")
    return Experiment(data / "one").round(0)


def rate_as_bob(page: Any, address: str, way: str) -> None:
    """To the tab Rate, a name, and the focus on a button of the run that waits."""
    open_tab(page, address, "rate")
    tab_to(page, "rater")
    page.keyboard.type("Bob")
    tab_to(page, way)


def hand_in(page: Any) -> None:
    tab_to(page, "Hand in")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=No run waits")


def test_human_scores_by_keyboard(data: Path) -> None:
    round_ = waiting(data)
    with browsing(data) as (page, address):
        rate_as_bob(page, address, "Rate")
        page.locator(".job .primary").focus()
        page.keyboard.press("Enter")
        for n in range(8):
            page.wait_for_selector(f".trialbar:has-text('{n} of 8')")
            page.keyboard.press(str(n % 5 + 1))
        page.wait_for_selector("text=You have rated every image")
        page.keyboard.press("ArrowLeft")  # the last one again
        page.wait_for_selector(".scale")
        page.keyboard.press("5")
        page.wait_for_selector("text=You have rated every image")
        hand_in(page)
    assert sorted(round_.scores("images", "human").values()) == [1, 1, 2, 2, 3, 4, 5, 5]


def test_scores_from_two_images_at_a_time(data: Path) -> None:
    """The one with the higher number is always better: by keys, with the last answer changed."""
    round_ = waiting(data)
    with browsing(data) as (page, address):
        rate_as_bob(page, address, "Compare two")
        page.keyboard.press("Enter")

        def shown() -> list[int]:
            images = page.locator(".choice img").all()
            return [int(str(i.get_attribute("src")).rsplit("=", 1)[1]) for i in images]

        for n in range(12):
            page.wait_for_selector(f".trialbar:has-text('{n} of 12')")
            left, right = shown()
            page.keyboard.press("1" if (left > right) != (n == 11) else "2")
        page.wait_for_selector("text=You have compared them all")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector(".choices")
        page.keyboard.press("1" if left > right else "2")
        page.wait_for_selector("text=You have compared them all")
        hand_in(page)
    scores, texts = round_.scores("images", "human"), round_.texts_to_score("images")
    for text in set(texts):
        members = [i for i in range(8) if texts[i] == text]
        assert sorted(members, key=lambda i: scores[i]) == members


def test_a_message_never_covers_what_is_rated(data: Path) -> None:
    """Wherever the page is scrolled to, in a low window: at the top or at the bottom."""
    say = "import('/static/dom.js').then((dom) => dom.say('something to read'))"
    with browsing(data) as (page, address):
        rate_as_bob(page, address, "Begin")
        page.keyboard.press("Enter")
        page.wait_for_selector(".choice img")
        page.set_viewport_size({"width": 1280, "height": 640})
        for scroll in (0, 60, 120, 400):
            page.evaluate(f"scrollTo(0, {scroll})")
            page.evaluate(say)
            page.wait_for_selector("#toast.on")
            toast = page.locator("#toast").bounding_box()
            for image in page.locator(".choice img").all():
                box = image.bounding_box()
                apart = (
                    box["y"] >= toast["y"] + toast["height"]
                    or box["y"] + box["height"] <= toast["y"]
                )
                assert apart, scroll


def test_choices_are_by_run(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "rate")
        assert page.locator(".setup button[aria-pressed=true]").all_inner_texts() == [
            "before",
            "after 1",
        ]
        assert page.locator(".setup input:visible").count() == 0
        page.get_by_label("Experiment").select_option("two")
        page.wait_for_function("() => location.hash.includes('two%7Ccompare%2Fepoch1')")
        page.locator(".sources summary").click()
        page.locator("fieldset", has_text="one").get_by_label("before").check()
        assert "(1)" in page.locator(".sources summary").inner_text()
