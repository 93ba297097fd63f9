"""The tab Pairs and an opened pair, in a headless Chromium."""

import shutil
import time
from pathlib import Path

import pytest

from dfusion.report.page import write
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import read_json, write_json
from tests.view.browsing import browsing, needs_browser, open_tab

pytestmark = needs_browser


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
        assert page.locator("dialog .layer:visible").count() == 0
        page.keyboard.press("m")
        assert page.locator("dialog .layer:visible").count() == 3
        page.keyboard.press("m")
        page.keyboard.press("i")
        items = page.locator("dialog .layers button").count() - 1
        assert page.locator("dialog .layer:visible").count() == 3 * items > 0
        assert page.locator("dialog h2 .itemword").count() == items
        assert "Eq. 7 asks for" in page.locator("dialog .says").inner_text()
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
def test_a_card_opens_wherever_it_is_clicked(data: Path, width: int) -> None:
    with browsing(data, width) as (page, address):
        for tab, card in (("pairs", ".card"), ("compare", ".same")):
            open_tab(page, address, tab, "?exp=one")
            pictures = page.locator(f"{card} figure > .pic")
            assert pictures.count() >= 8
            for picture in pictures.all():
                picture.scroll_into_view_if_needed()
                box = picture.bounding_box()
                page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
                page.wait_for_selector("dialog", timeout=2000)
                page.keyboard.press("Escape")
                page.wait_for_selector("dialog", state="detached")


def test_the_address_names_the_pair_and_the_step(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "pairs", "?exp=one&round=epoch0")
        page.locator(".card .open").nth(1).click()
        page.wait_for_selector("dialog")
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("() => /pair=1&t=1$/.test(location.hash)")
        page.reload()
        page.wait_for_selector("dialog output")
        assert page.locator("dialog h2 small").inner_text().startswith("Pair 1,")
        assert page.locator("dialog output").inner_text().startswith("step t = 1")
        page.keyboard.press("Escape")
        page.wait_for_function("() => !location.hash.includes('pair=')")
        page.locator(".card .open").first.click()
        page.wait_for_selector("dialog")
        page.go_back()
        page.wait_for_selector("dialog", state="detached")
        page.go_forward()
        page.wait_for_selector("dialog")
        assert page.locator("dialog h2 small").inner_text().startswith("Pair 0,")


def test_images_are_zoomed_and_moved_together(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "pairs", "?exp=one&round=epoch0&pair=0")
        page.wait_for_selector("dialog .zoom")

        def widths() -> list[float]:
            """Of the images, in pixels of the image's own size."""
            return page.locator("dialog .final img").evaluate_all(
                "all => all.map(i => i.getBoundingClientRect().width / i.naturalWidth)"
            )

        for zoom in (1, 2, 4):
            page.keyboard.press("+")
            assert widths() == pytest.approx([zoom] * 3, rel=1e-4)
        page.get_by_role("button", name="8:1").click()
        before = page.locator("dialog .final img").first.bounding_box()
        box = page.locator("dialog .zoom").last.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 40, y - 10, steps=4)
        page.mouse.up()
        after = page.locator("dialog .final img").first.bounding_box()
        assert [round(after[k] - before[k]) for k in ("x", "y")] == [-40, -10]
        page.mouse.click(x, y)
        assert page.locator("dialog .zoomed").count() == 0
        page.keyboard.press("2")
        assert page.locator("dialog .zoom:visible").count() == 1


def test_the_same_pair_of_another_run_beside_it(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "pairs", "?exp=one&round=epoch0&pair=2")
        page.get_by_label("Beside").select_option("two|epoch0")
        page.wait_for_selector("dialog .row:nth-child(2)")
        assert "same noise of the base, pair 2" in page.locator("dialog .rowname").last.inner_text()
        sources = [str(i.get_attribute("src")) for i in page.locator("dialog .final img").all()]
        assert [s.replace("exp=two", "exp=one") for s in sources[3:]] == sources[:3]


def test_a_pair_is_saved_and_its_files_named(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "pairs", "?exp=one&round=epoch0&pair=2")
        with page.expect_download() as saved:
            page.get_by_role("link", name="PNG").click()
        assert saved.value.suggested_filename == "one_epoch0_pair2.png"
        page.locator("dialog .files summary").click()
        paths = page.locator("dialog .files code").all_inner_texts()
        assert len(paths) == 4 and all(Path(path).is_file() for path in paths)
        assert "seed" in page.locator("dialog .files").inner_text()
        page.keyboard.press("?")
        assert page.locator("dialog .keylist dt").count() > 6


def test_words_of_the_prompt_are_searched(data: Path) -> None:
    with browsing(data) as (page, address):
        open_tab(page, address, "pairs", "?exp=one&round=epoch0")
        prompts = page.locator(".card h3").all_inner_texts()
        page.keyboard.press("/")
        page.keyboard.type(prompts[0].upper())
        assert page.locator(".card").count() == prompts.count(prompts[0]) == 2


def test_the_page_of_an_experiment_works_from_its_folder(data: Path) -> None:
    """The same pairs, without the app: from file://, with no request to elsewhere."""
    write(data / "one")
    with browsing(data) as (page, _):
        asked: list[str] = []
        page.on("requestfailed", lambda r: asked.append(r.url))
        page.route("http*://**", lambda route: asked.append(route.request.url))
        page.goto((data / "one/index.html").as_uri())
        page.wait_for_selector(".card")
        assert page.locator(".card").count() == 4
        page.locator(".card .open").nth(2).click()
        page.wait_for_selector("dialog")
        page.keyboard.press("m")
        page.keyboard.press("ArrowLeft")
        assert page.locator("dialog .layer:visible").count() == 3
        page.wait_for_function(
            "() => [...document.querySelectorAll('dialog img')].every(i => i.naturalWidth)"
        )
        page.wait_for_function("() => /pair=2&t=1$/.test(location.hash)")
        page.reload()
        page.wait_for_selector("dialog")
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Before and after").click()
        page.wait_for_selector(".same img")
        assert not asked
