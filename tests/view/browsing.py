"""A headless Chromium on the web app, for tests of what a person sees and does."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TABS = ("runs", "pairs", "compare", "thresholds", "rate")
needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(not (ROOT / "testbed/weights/diffusion").is_dir(), reason="no weights"),
]


@contextmanager
def serving(data: Path, flags: Iterable[str] = ()) -> Iterator[str]:
    """The app as a process of its own; yields its address."""
    command = [sys.executable, "-m", "dfusion", "view", str(data), "--port", "0", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"http://\S+/", process.stdout.readline())
            assert match
            yield match[0]
        finally:
            process.terminate()


@contextmanager
def browsing(data: Path, width: int = 1280, flags: Iterable[str] = ()) -> Iterator[tuple[Any, str]]:
    """A page and the app's address. Fails on script errors and on requests to elsewhere."""
    wrong: list[str] = []
    with serving(data, flags) as address, playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": width, "height": 860})
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith((address, "data:", "file:")) else wrong.append(r.url)
            ),
        )
        page.goto(address)
        page.wait_for_selector(".tab")
        yield page, address
        browser.close()
    assert not wrong


def open_tab(page: Any, address: str, tab: str, query: str = "") -> None:
    page.goto(f"{address}#/{tab}{query}")
    page.wait_for_selector(f".tab.{tab}")


def tab_to(page: Any, name: str, most: int = 80) -> None:
    """Move the keyboard's focus forward to what is called `name`."""
    for _ in range(most):
        said = page.evaluate(
            "(e => `${e.getAttribute('aria-label') ?? ''} ${e.innerText ?? ''} ${e.id} "
            "${e.closest('label')?.innerText ?? ''}`)(document.activeElement)"
        )
        if name in said:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard does not reach '{name}'")
