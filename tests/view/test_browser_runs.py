"""The tab Runs, in a headless Chromium."""

from pathlib import Path

from dfusion.storage.experiment import Experiment
from tests.view.browsing import browsing, needs_browser, tab_to

pytestmark = needs_browser


def test_runs_are_laid_over_each_other(data: Path) -> None:
    with browsing(data) as (page, _):
        chart = page.locator(".chart", has_text="same noise each time").first
        assert chart.locator("path").count() == 2
        dashes = {p.get_attribute("stroke-dasharray") for p in chart.locator("path").all()}
        assert len(dashes) == 2  # told apart without colour
        tab_to(page, "run-two")
        page.keyboard.press("Space")
        assert chart.locator("path").count() == 1
        page.reload()
        page.wait_for_selector(".chart")
        assert page.locator(".chart").first.locator("path").count() == 1
        # Live: a stage that goes back to work shows without reloading.
        round_ = Experiment(data / "one").round(0)
        for i in (6, 7):
            round_.image("images", i).unlink()
        page.wait_for_selector("[data-run=one] .stage:has-text('6/8')", timeout=8000)
