"""The tab Before and after, in a headless Chromium."""

from pathlib import Path

from tests.view.browsing import browsing, needs_browser, open_tab

pytestmark = needs_browser


def test_before_and_after(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "compare", "?exp=one")
        assert page.locator(".same").count() == 4
        assert page.locator(".same").first.locator("img").count() == 2
        first = page.locator(".same img").first.bounding_box()
        assert first["y"] + first["height"] < 860  # above the fold
        page.locator(".sources summary").click()
        page.locator("fieldset", has_text="two").get_by_label("after 1").check()
        page.wait_for_function(
            "() => document.querySelectorAll('.same')[0]?.querySelectorAll('img').length === 3"
        )
        assert "mean 0.500" in page.locator(".gridhead").inner_text()
        page.locator(".same .open").first.focus()
        page.keyboard.press("Enter")
        seen = set()
        for _ in range(3):
            seen.add(page.locator("dialog img").get_attribute("src"))
            page.keyboard.press("ArrowRight")
        assert len(seen) == 3
        page.keyboard.press("Escape")
