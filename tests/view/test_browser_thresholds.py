"""The tab Thresholds, in a headless Chromium."""

import json
import re
from pathlib import Path

from tests.view.browsing import browsing, needs_browser, open_tab, tab_to

pytestmark = needs_browser


def test_thresholds_by_keyboard(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "thresholds", "?exp=one&round=epoch0")
        page.wait_for_function("() => document.querySelector('.masks .num:last-child')?.innerText")
        cover = page.locator(".masks figcaption .num:last-child")
        before = cover.all_inner_texts()
        tab_to(page, "thr-0")
        for _ in range(12):
            page.keyboard.press("PageUp")
        page.wait_for_function(
            "t => document.querySelector('.masks .num:last-child').innerText !== t", arg=before[0]
        )
        assert int(cover.first.inner_text().split()[0]) < int(before[0].split()[0])
        assert "Not saved yet" in page.locator(".savebar").inner_text()
        page.keyboard.press("s")
        page.wait_for_selector("#toast.on")
        saved = json.loads((data / "one/thresholds.json").read_text())
        prompt = page.get_by_label("Prompt").input_value()
        typed = page.locator(".item input[type=number]").first.input_value()
        assert len(saved) == 2 and saved[prompt][0] == float(typed) > 1e-6
        kept = page.locator(".kept").first.inner_text()
        assert re.fullmatch(r"keeps [\d.]+ % of the cells", kept)
        line = page.locator(".savebar code.line").inner_text()
        assert "--config.exp_name=real_thresholds" in line
        assert f"--config.mask_thr_file={data / 'one/thresholds.json'}" in line
        # Undo goes back before the change, and says that this is not what was saved.
        while not page.get_by_role("button", name="Undo").is_disabled():
            page.keyboard.press("u")
        assert float(page.locator(".item input[type=number]").first.input_value()) == 1e-6
        assert "Not saved yet" in page.locator(".savebar").inner_text()


def test_thresholds_are_saved_for_the_prompt_they_are_of(data: Path) -> None:
    """The server's answer is late: until it is there, the sliders are still the last prompt's."""
    late = """const real = window.fetch; window.wait = [];
        window.fetch = async (url, ...more) => {
          const answer = await real(url, ...more);
          if (/thresholds\\?/.test(url)) await new Promise((go) => setTimeout(go, window.wait.shift() ?? 0));
          return answer;
        };"""  # noqa: E501
    with browsing(data) as (page, address):
        page.add_init_script(late)
        page.reload()
        open_tab(page, address, "thresholds", "?exp=one&round=epoch0")
        page.wait_for_function("() => document.querySelector('.masks .num:last-child')?.innerText")
        typed = page.locator(".item input[type=number]").first
        typed.fill("0.25")
        typed.press("Enter")
        typed.press("Tab")
        first = page.get_by_label("Prompt").input_value()
        page.evaluate("window.wait = [1200, 0]")
        page.keyboard.press("]")  # answered late
        page.keyboard.press("s")
        page.wait_for_timeout(300)
        assert not (data / "one/thresholds.json").exists()
        page.keyboard.press("]")  # of two prompts: back to the first, answered at once
        page.wait_for_timeout(1500)
        assert page.get_by_label("Prompt").input_value() == first
        page.keyboard.press("s")
        page.wait_for_selector("#toast.on")
        saved = json.loads((data / "one/thresholds.json").read_text())
        words = {text: len(saved[text]) for text in saved}
        assert len(words) == 2 and saved[first][0] == float(typed.input_value() or "nan")
        shown = page.locator(".item .word").all_inner_texts()
        assert all(word in first for word in shown)
