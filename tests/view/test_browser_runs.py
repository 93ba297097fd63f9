"""The tab Runs in a headless Chromium: the table, the curves, and a run at work."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfusion.storage.experiment import Experiment
from dfusion.storage.files import read_json
from dfusion.storage.lock import run_lock
from tests.many_runs import make
from tests.view.browsing import ROOT, browsing, needs_browser, open_tab, tab_to

pytestmark = needs_browser


@pytest.fixture
def many(tmp_path: Path) -> Path:
    make(tmp_path / "data", 9)
    return tmp_path / "data"


def names(page: Any) -> list[str]:
    return [row.get_attribute("data-run") for row in page.locator("tbody tr[data-run]").all()]


def test_runs_are_laid_over_each_other(data: Path) -> None:
    with browsing(data) as (page, _):
        chart = page.locator(".chart", has_text="same noise each time").first
        chart.wait_for()
        assert chart.locator("path").count() == 2
        dashes = {p.get_attribute("stroke-dasharray") for p in chart.locator("path").all()}
        assert len(dashes) == 2  # told apart without colour
        tab_to(page, "run-two")
        page.keyboard.press("Space")
        page.wait_for_function("() => document.querySelectorAll('.legend li').length === 1")
        assert chart.locator("path").count() == 1
        page.reload()
        page.wait_for_selector(".chart")
        assert page.locator(".chart").first.locator("path").count() == 1
        # Live: new scores show without reloading.
        later = Experiment(data / "one").comparison(1)
        reward = read_json(later.scores_file("images"))["reward"]
        later.write_scores("images", reward, dict.fromkeys(later.scores("images"), 0.25))
        page.wait_for_selector("[data-run=one] .score:has-text('0.250')", timeout=8000)


def test_the_table_is_sorted_filtered_and_pinned(many: Path) -> None:
    with browsing(many, 1400) as (page, _):
        page.locator("thead .score button").click()
        scores = [float(x) for x in page.locator("td.score").all_inner_texts()]
        assert len(scores) == 9 and scores == sorted(scores, reverse=True)
        page.locator("thead .score button").click()
        assert page.locator("thead .score").get_attribute("aria-sort") == "ascending"
        assert page.locator("td.score").first.inner_text() == f"{scores[-1]:.3f}"
        last = names(page)[-1]
        tab_to(page, f"Pin {last}")
        page.keyboard.press("Enter")
        assert names(page)[0] == last
        page.get_by_label("Filter").fill("dpo_dfusion_00 seed=43")
        assert names(page) == ["dpo_dfusion_00_s43"]
        page.get_by_label("Filter").fill("failed")
        assert names(page) == ["dpok_dfusion_02_s44"]
        assert "the loss is NaN" in page.locator("tbody").inner_text()
        page.reload()
        page.wait_for_selector(".tab")
        assert names(page) == ["dpok_dfusion_02_s44"]
        page.get_by_label("Filter").fill("nothing has this name")
        assert "No run matches" in page.locator(".all").inner_text()
        page.get_by_label("Filter").fill("seed=42")
        # Of these three, only the method differs.
        said = page.locator("tbody .differs").all_inner_texts()
        assert sorted(said) == ["method ddpo", "method dpo", "method dpok"]


def test_only_what_changed_is_drawn_again(tmp_path: Path) -> None:
    """200 runs: a page of rows is made, and a new score makes one of them anew."""
    data = tmp_path / "data"
    make(data, 200)
    with browsing(data, 1400) as (page, _):
        assert page.locator(".count").inner_text() == "200 runs"
        made = page.locator("tbody tr[data-run]").count()
        assert 20 <= made <= 60
        page.evaluate("document.querySelectorAll('tbody tr').forEach((row) => { row.old = true; })")
        first = names(page)[0]
        later = Experiment(data / first).comparison(4)
        later.write_scores("images", "clip", dict.fromkeys(later.scores("images"), 0.9))
        page.wait_for_selector(f"[data-run={first}] .score:has-text('0.9')", timeout=15000)
        fresh = page.evaluate(
            "[...document.querySelectorAll('tbody tr[data-run]')].filter((r) => !r.old).length"
        )
        assert fresh == 1
        for _ in range(20):
            page.evaluate(
                "(e => { e.scrollTop = e.scrollHeight; })(document.querySelector('.scroll'))"
            )
            page.wait_for_timeout(200)
        assert page.locator("tbody tr[data-run]").count() == 200


def test_curves_have_bands_values_and_a_choice(many: Path) -> None:
    with browsing(many, 1400) as (page, _):
        chart = page.locator(".chart", has_text="Mean score, same noise").first
        legend = page.locator(".legend li")
        chart.wait_for()
        assert "mean ± s.d. of 3 seeds" in legend.first.inner_text()
        lines = legend.count()
        assert chart.locator("path").count() == lines and chart.locator(".band").count() >= 1
        chart.locator("svg").first.hover()
        reading = chart.locator(".reading")
        assert reading.locator("span").count() == lines
        assert "±" in reading.inner_text()
        page.mouse.move(0, 0)
        chart.locator("svg").first.focus()
        page.keyboard.press("ArrowRight")
        assert reading.locator("b").inner_text() == "rounds of training 0"
        page.get_by_label("Mean over seeds").uncheck()
        page.wait_for_function("() => !document.querySelector('.band')")
        assert legend.count() == 7
        strokes = {
            (p.get_attribute("stroke"), p.get_attribute("stroke-dasharray"))
            for p in chart.locator("path").all()
        }
        assert len(strokes) == 7
        assert not page.locator(".chart", has_text="Gradient norm").count()
        page.get_by_text("What to plot").click()
        page.get_by_label("Gradient norm").check()
        page.wait_for_selector(".chart:has-text('Gradient norm')")
        page.reload()
        page.wait_for_selector(".chart:has-text('Gradient norm')")


def test_settings_are_compared_and_the_command_copied(many: Path) -> None:
    with browsing(many, 1400) as (page, address):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        open_tab(page, address, "runs", "?open=dpok_dfusion_02_s44")
        page.wait_for_selector("dialog .sides")
        said = page.locator("dialog").inner_text()
        assert "the loss is NaN" in said
        page.locator("dialog .copy button").click()
        page.wait_for_selector("#toast.on")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("python3 run_train.py --config testbed")
        assert "--config.seed=44" in copied and "--config.train.method=dpok" in copied
        page.get_by_label("Compare with").select_option("dpo_dfusion_00_s42")
        page.wait_for_function(
            "() => document.querySelectorAll('dialog .sides tbody tr').length < 9"
        )
        keys = page.locator("dialog .sides tbody th").all_inner_texts()
        assert keys == ["seed", "train.method"]
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")
        page.get_by_text("Compare settings").click()
        page.wait_for_selector("dialog .sides")
        assert page.locator("dialog .sides thead th").count() == 8
        page.keyboard.press("Escape")
        page.get_by_role("button", name="dpo_dfusion_00_s42", exact=True).click()
        page.locator("dialog .links a").first.click()
        page.wait_for_selector(".tab.pairs")
        assert page.locator("dialog").count() == 0


@pytest.fixture
def training(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run of the included model, in a process of its own."""
    data = tmp_path / "data"
    data.mkdir()
    flags = [
        *("--config", "testbed", "--config.exp_name=live", f"--config.save_path={data}"),
        *("--config.eval.in_process=True", "--config.device=cpu"),
        "--config.prompt_file=config/prompt/demo.json",
        "--config.item_idx_file=config/prompt/demo_item.json",
        "--config.mask_thr_file=config/prompt/demo_mask.json",
        *("--config.sample.batch_size=4", "--config.sample.num_batches_per_epoch=4"),
    ]
    command = [sys.executable, "run_train.py", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield data, process
        finally:
            process.kill()


def test_a_run_is_watched_and_stopped(training: tuple[Path, subprocess.Popen[str]]) -> None:
    data, process = training
    with browsing(data, 1400, ["--control"]) as (page, _):
        assert "No runs here yet" in page.locator("main").inner_text()
        page.wait_for_selector(".work .strip img", timeout=120_000)
        before = page.locator(".work .strip img").count()
        page.wait_for_function(
            "n => document.querySelectorAll('.work .strip img').length > n",
            arg=before,
            timeout=60_000,
        )
        assert "sampling" in page.locator(".work .stages").inner_text()
        assert "s left" in page.locator(".work .left").inner_text()
        page.get_by_role("button", name="Stop").click()
        assert process.poll() is None  # the first press only asks
        page.get_by_role("button", name="Press again").click()
        assert process.wait(60) == 130
        page.wait_for_selector(".work", state="hidden", timeout=15_000)
        assert page.locator("[data-run=live] .state").first.inner_text() == "not running"
    assert process.stdout is not None
    assert "Run the same command again to continue" in process.stdout.read()
    assert run_lock(data / "live").acquire()
    assert read_json(data / "live/config.json")["settings"]["exp_name"] == "live"
