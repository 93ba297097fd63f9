"""The web app as a person uses it: a headless Chromium on a run of the testbed's model."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dfusion.settings.presets import PRESETS
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_json, write_json
from dfusion.training.trainer import train_rounds
from tests.viewing import ask_people

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
HOSTILE = '<img src=x onerror="document.title=1"> a star'
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(not (ROOT / "testbed/weights/diffusion").is_dir(), reason="no weights"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round of training with the testbed's model: two prompts, four images each."""
    folder = tmp_path_factory.mktemp("browser")
    items = json.loads((ROOT / "config/prompt/demo_item.json").read_text())
    (folder / "prompts.json").write_text(json.dumps(list(items)[:2]))
    settings = PRESETS["testbed"]()
    settings.prompt_file = str(folder / "prompts.json")
    settings.item_idx_file = str(ROOT / "config/prompt/demo_item.json")
    settings.mask_thr_file, settings.mask_thr = "", "1e-6"  # none of the repository's to change
    settings.mask.merge = "or"  # a higher threshold can only make the mask smaller
    settings.save_path, settings.exp_name = str(folder / "data"), "real"
    settings.sample.batch_size = 4
    settings.eval.in_process, settings.device = True, "cpu"
    settings.train.compare_images, settings.train.updates_per_inner_epoch = 2, 1
    train_rounds(settings)
    return folder / "data"


@pytest.fixture
def data(trained: Path, tmp_path: Path) -> Path:
    """The run twice, "one" and "two"; the second with other scores after training."""
    for name in ("one", "two"):
        shutil.copytree(trained / "real", tmp_path / "data" / name)
    later = Experiment(tmp_path / "data" / "two").comparison(1)
    reward = read_json(later.scores_file("images"))["reward"]
    later.write_scores("images", reward, dict.fromkeys(later.scores("images"), 0.5))
    return tmp_path / "data"


@contextmanager
def serving(data: Path) -> Iterator[str]:
    """The app as a process of its own; yields its address."""
    command = [sys.executable, "-m", "dfusion", "view", str(data), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"http://\S+/", process.stdout.readline())
            assert match
            yield match[0]
        finally:
            process.terminate()


@contextmanager
def browsing(data: Path, width: int = 1280) -> Iterator[tuple[Any, str]]:
    """A page and the app's address. Fails on script errors and on requests to elsewhere."""
    wrong: list[str] = []
    with serving(data) as address, playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": width, "height": 860})
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on(
            "request",
            lambda r: None if r.url.startswith((address, "data:")) else wrong.append(r.url),
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


def test_pairs_by_keyboard(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "pairs", "?exp=one&round=epoch0&sort=gain")
        gains = [
            float(t.replace("−", "-").split()[1])
            for t in page.locator(".marks .dim").all_inner_texts()
        ]
        assert len(gains) == 4 and gains == sorted(gains, reverse=True)
        rows = Experiment(data / "one").round(0).adoption() or []
        page.get_by_label("Adopted").select_option("yes")
        adopted = sum(row["adopted"] for row in rows)
        assert page.locator(".card").count() == adopted
        page.get_by_label("Adopted").select_option("")
        page.locator(".card .open").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog .part.loaded", state="attached")
        part = page.locator("dialog .target .part").first.locator("img")
        places = set()
        for _ in range(4):
            page.keyboard.press("ArrowLeft")
            places.add(part.evaluate("e => e.style.left"))
        assert len(places) == 4
        assert "step t = 4" in page.locator("dialog output").inner_text()
        assert page.locator("dialog .veil:visible").count() == 0
        page.keyboard.press("m")
        assert page.locator("dialog .veil:visible").count() == 3
        title = page.locator("dialog h2").inner_text()
        page.keyboard.press("j")
        assert page.locator("dialog h2").inner_text() != title
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")


def test_a_pair_whose_trajectories_were_dropped(data: Path) -> None:
    Experiment(data / "one").round(0).drop_states()
    with browsing(data) as (page, address):
        open_tab(page, address, "pairs", "?exp=one&round=epoch0")
        page.locator(".card .open").first.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("ArrowLeft")
        said = page.locator("dialog output").inner_text()
        assert said == "step t = 1: trajectories not kept"
        assert page.locator("dialog .three img[alt=base]").is_visible()


def test_before_and_after(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "compare", "?exp=one")
        assert page.locator(".same").count() == 4
        assert page.locator(".same").first.locator("img").count() == 2
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
        saved = json.loads((data / "thresholds/one.json").read_text())
        prompt = page.get_by_label("Prompt").input_value()
        typed = page.locator(".item input[type=number]").first.input_value()
        assert len(saved) == 2 and saved[prompt][0] == float(typed) > 1e-6


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
        assert not (data / "thresholds/one.json").exists()
        page.keyboard.press("]")  # of two prompts: back to the first, answered at once
        page.wait_for_timeout(1500)
        assert page.get_by_label("Prompt").input_value() == first
        page.keyboard.press("s")
        page.wait_for_selector("#toast.on")
        saved = json.loads((data / "thresholds/one.json").read_text())
        words = {text: len(saved[text]) for text in saved}
        assert len(words) == 2 and saved[first][0] == float(typed.input_value() or "nan")
        shown = page.locator(".item .word").all_inner_texts()
        assert all(word in first for word in shown)


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


def enlarge(data: Path) -> None:
    """Experiment "big": a round of 640 images and 320 pairs out of the small one's files."""
    shutil.copytree(data / "one", data / "big")
    round_ = Experiment(data / "big").round(0)
    manifest = round_.manifest() or {}
    pairs = read_json(round_.folder / "pairs.json")
    adoption, known = round_.adoption() or [], round_.scores("images")
    scored, reward = (
        round_.scores("target_images"),
        read_json(round_.scores_file("images"))["reward"],
    )
    for i in range(8, 640):
        shutil.copy(round_.image("images", i % 8), round_.image("images", i))
    for p in range(4, 320):
        for kind in ("target_images", "masks"):
            shutil.copy(round_.image(kind, p % 4), round_.image(kind, p))
        again = pairs["pairs"][p % 4]
        shift = 8 * (p // 4)
        pairs["pairs"].append(
            {**again, "base": again["base"] + shift, "reference": again["reference"] + shift}
        )
    manifest["samples"] = [manifest["samples"][i % 8] for i in range(640)]
    write_json(round_.folder / "manifest.json", manifest)
    write_json(round_.folder / "pairs.json", pairs)
    round_.write_adoption([adoption[p % 4] for p in range(320)], {})
    round_.write_scores("images", reward, {i: known[i % 8] for i in range(640)})
    round_.write_scores("target_images", reward, {p: scored[p % 4] for p in range(320)})


def test_a_round_of_640_images_opens_at_once(data: Path) -> None:
    enlarge(data)
    with browsing(data) as (page, address):
        asked: list[str] = []
        page.on("request", lambda r: asked.append(r.url) if "/image" in r.url else None)
        started = time.monotonic()
        open_tab(page, address, "pairs", "?exp=big&round=epoch0")
        page.wait_for_function(
            "() => { const a = [...document.querySelectorAll('.card img')].slice(0, 16);"
            " return a.length === 16 && a.every((i) => i.complete && i.naturalWidth); }"
        )
        seconds = time.monotonic() - started
        page.wait_for_timeout(1000)
        first = len(asked)
        assert "320 of 320" in page.locator(".count").inner_text()
        for _ in range(3):
            page.mouse.wheel(0, 2500)
            page.wait_for_timeout(300)
        print(f"opened in {seconds:.2f} s; images asked for: {first}, {len(asked)} after scrolling")
        assert seconds < 2
        assert first < 150 and first < len(asked) < 600
        for _ in range(60):
            page.mouse.wheel(0, 20_000)
            page.wait_for_timeout(100)
            if page.locator(".card").count() == 320:
                break
        assert page.locator(".card").count() == 320


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
