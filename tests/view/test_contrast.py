"""Contrast of every tab by WCAG AA, as axe measures it, in light and in dark mode."""

from pathlib import Path

import pytest

from tests.many_runs import make
from tests.view.browsing import TABS, browsing, needs_browser, open_tab

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
)
pytestmark = needs_browser
RULES = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_text_has_contrast(data: Path, scheme: str, width: int) -> None:
    make(data, 9)  # of all states: finished and failed
    found: dict[str, list[str]] = {}
    with browsing(data, width) as (page, address):
        page.emulate_media(color_scheme=scheme)
        for tab in TABS:
            open_tab(page, address, tab, "" if tab == "runs" else "?exp=one")
            page.wait_for_timeout(500)
            answer = axe.Axe().run(page, options=RULES).response
            assert answer["passes"], f"{tab}: axe has measured nothing"
            low = [node["html"][:90] for rule in answer["violations"] for node in rule["nodes"]]
            if low:
                found[tab] = low
    assert not found
