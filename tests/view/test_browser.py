"""What holds for every tab of the web app, in a headless Chromium."""

import json
from pathlib import Path

import pytest

from dfusion.storage.experiment import Experiment
from tests.view.browsing import TABS, browsing, needs_browser, open_tab

HOSTILE = '<img src=x onerror="document.title=1"> a star'

pytestmark = needs_browser


@pytest.mark.parametrize("width", [400, 1280])
def test_every_tab_fits_its_window(data: Path, width: int) -> None:
    with browsing(data, width) as (page, address):
        for tab in TABS:
            open_tab(page, address, tab)
            page.wait_for_timeout(300)
            over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert over <= 0, f"{tab}: {over} pixels too wide"
            outside = page.evaluate(
                "[...document.querySelectorAll('main button, main select, main input')]"
                ".filter(e => !e.closest('.masks'))"
                ".filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
                ".map(e => e.outerHTML.slice(0, 80))"
            )
            assert not outside, tab


def test_prompts_are_text_whatever_they_say(data: Path) -> None:
    round_ = Experiment(data / "one").round(0)
    old = round_.sample_prompts()[0].text
    for path in [*round_.folder.glob("*.json"), *(data / "one/compare").glob("*/manifest.json")]:
        path.write_text(path.read_text().replace(json.dumps(old), json.dumps(HOSTILE)))
    with browsing(data) as (page, address):
        for tab in TABS[1:4]:
            open_tab(page, address, tab, "?exp=one")
            page.wait_for_selector(f"text={HOSTILE[:9]}", state="attached")
            assert page.locator("img[src=x]").count() == 0
            assert page.title() != "1"
