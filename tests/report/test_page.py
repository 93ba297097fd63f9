"""The page and the contact sheet say what is on disk, at every stage of a run."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfusion.commands import cli
from dfusion.method.pairing import Pair
from dfusion.method.prompts import Item, Prompt
from dfusion.report import contact_sheet, page
from dfusion.report.rounds import SIDES, read_mask
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import write_json, write_png

HOSTILE = '</script><img src=x onerror="alert(1)"> <!-- & a cat __DATA__ \u2028'
PROMPTS = (Prompt("a red ball", (Item("ball", 0.5),)), Prompt(HOSTILE, (Item(4, None),)))
PAIRS = (Pair("a red ball", 0, 1), Pair("a red ball", 2, 3), Pair(HOSTILE, 4, 5))
SCORES = {0: 0.5, 1: 0.1, 2: 0.4, 3: 0.2, 4: 0.9, 5: 0.3}
TARGETS = {0: 0.6, 1: 0.3, 2: 0.9}
ADOPTED = (True, False, True)
COLOURS = {"base": (200, 0, 0), "reference": (0, 0, 200), "target": (0, 200, 0)}
KINDS = ("images", "target_images", "masks")
STAGES = ("nothing", "planned", "sampled", "scored", "paired", "half fused", "fused", "decided")


def solid(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((8, 8, 3), colour, np.uint8)


def sprite() -> np.ndarray:
    """T=4, one item, tiles of 2x2; t=4 unfused, t=3 one cell, t=2 none, t=1 all: 5 of 12 cells."""
    sheet = np.full((4, 8), 100, np.uint8)
    sheet[:2] = 0
    sheet[0, 2] = 255
    sheet[:2, 6:] = 255
    return sheet


def build(folder: Path, stage: str, number: int = 0) -> Round:
    """A round that has come as far as `stage`: two prompts, six images, three pairs."""
    reached = STAGES.index(stage)
    experiment = Experiment(folder)
    folder.mkdir(parents=True, exist_ok=True)
    round_ = experiment.round(number)
    if reached >= STAGES.index("planned"):
        settings = {"sample": {"num_steps": 4}, "fusion": {"steps": "3-1", "layers": "mid"}}
        write_json(experiment.config_file, {"settings": settings})
        round_.write_manifest(number, PROMPTS, 4, {})  # images 6 and 7 never come
    if reached >= STAGES.index("sampled"):
        for i in SCORES:
            write_png(round_.image("images", i), solid((i, i, i)))
    if reached >= STAGES.index("scored"):
        round_.write_scores("images", "clip", SCORES)
    if reached >= STAGES.index("paired"):
        round_.write_pairs(PAIRS, {})
    fused = {"half fused": 1}.get(stage, 3 if reached >= STAGES.index("fused") else 0)
    for n in range(fused):
        for side, (r, g, b) in COLOURS.items():
            write_png(round_.image(f"{side}_images", n), solid((r, g, b + n)))
        write_png(round_.image("masks", n), sprite())
    if stage == "decided":
        round_.write_scores("target_images", "clip", TARGETS)
        rows = [
            {
                "base": SCORES[p.base],
                "reference": SCORES[p.reference],
                "target": TARGETS[n],
                "adopted": ADOPTED[n],
            }
            for n, p in enumerate(PAIRS)
        ]
        round_.write_adoption(rows, {})
    return round_


def inline(folder: Path) -> dict[str, Any]:
    """The data of the page, as a browser would read it: up to the first closing tag."""
    html = (folder / "index.html").read_text(encoding="utf-8")
    match = re.search(r'<script type="application/json" id="answers">(.*?)</script', html)
    assert match
    return json.loads(match[1])


def shown(folder: Path, number: int = 0) -> dict[str, Any]:
    """What the page shows of a round."""
    return page.answers(folder)[f"round?exp={folder.name}&round=epoch{number}"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_gives_both_files_and_links_only_to_what_is_there(
    tmp_path: Path, stage: str
) -> None:
    folder = tmp_path / "run"
    build(folder, stage)
    before = {p for p in folder.rglob("*") if p.is_file()}
    written = page.write(folder)
    assert written == [folder / "index.html", folder / "pairs.png"]
    assert {p for p in folder.rglob("*") if p.is_file()} - before == set(written)
    (known,) = inline(folder)["catalogue"]
    assert known["rounds"] == ([] if stage == "nothing" else [0])
    if known["rounds"]:
        view = shown(folder)
        files = {kind: {p.name for p in before if p.parent.name == kind} for kind in KINDS}
        assert {f"{s['i']:05d}.png" for s in view["samples"]} == files["images"]
        targets = {f"{p['n']:05d}.png" for p in view["pairs"] if p["target"]["there"]}
        assert targets == files["target_images"]
        masks = {f"{p['n']:05d}.png" for p in view["pairs"] if p["mask"] is not None}
        assert masks == files["masks"]
    with Image.open(folder / "pairs.png") as sheet:
        assert sheet.width > 500


def test_every_pair_with_its_images_scores_and_adoption(tmp_path: Path) -> None:
    build(tmp_path, "decided", 0)
    build(tmp_path, "half fused", 1)
    page.write(tmp_path)
    first, second = shown(tmp_path, 0), shown(tmp_path, 1)
    for n, (pair, row) in enumerate(zip(PAIRS, first["pairs"], strict=True)):
        assert row["n"] == n
        assert first["prompts"][row["prompt"]]["text"] == pair.prompt
        scores = [SCORES[pair.base], SCORES[pair.reference], TARGETS[n]]
        assert [row[s]["score"] for s in SIDES] == scores
        assert (row["base"]["i"], row["reference"]["i"]) == (pair.base, pair.reference)
        assert row["adopted"] is ADOPTED[n]
    late = second["pairs"][2]  # not fused yet
    assert late["base"] == {"i": 5, "score": 0.3}
    assert late["target"] == {"there": False, "score": None}
    assert (late["mask"], late["gain"], late["adopted"]) == (None, None, None)


def test_hostile_prompts_stay_data(tmp_path: Path) -> None:
    build(tmp_path, "decided")
    page.write(tmp_path)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.count("</script") == 2 and "<img" not in html and "<!--" not in html
    view = inline(tmp_path)[f"round?exp={tmp_path.name}&round=epoch0"]
    assert HOSTILE in [p["text"] for p in view["prompts"]]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", html)
    assert not re.search(r"(src|href)=[\"']?(http|/)|@import", html)


def test_the_page_is_one_classic_script() -> None:
    """file:// loads no modules: all of them are in the script, each before it is used."""
    script = page.bundle("page")
    assert not re.search(r"^(import|export) ", script, re.MULTILINE)
    modules = re.findall(r"^const \$(\w+) = (.*?)^\}\)\(\);$", script, re.MULTILINE | re.DOTALL)
    names = [name for name, _ in modules]
    assert names[-1] == "page" and len(set(names)) == len(names)
    for place, (_, body) in enumerate(modules):
        assert set(re.findall(r"= \$(\w+);", body)) <= set(names[:place])


def test_items_are_words_with_thresholds(tmp_path: Path) -> None:
    build(tmp_path, "planned")
    prompts = shown(tmp_path)["prompts"]
    assert prompts[0]["items"] == [{"word": "ball", "threshold": 0.5}]
    assert prompts[1]["items"] == [{"word": HOSTILE.split()[4], "threshold": None}]


def test_summary_against_figures_worked_by_hand(tmp_path: Path) -> None:
    build(tmp_path, "decided")
    round_ = shown(tmp_path)
    total = round_["summary"]
    assert (total["images"], round_["planned"], total["pairs"]) == (6, 8, 3)
    assert total["mean"] == pytest.approx(
        {"images": 2.4 / 6, "base": 0.6 / 3, "reference": 1.8 / 3, "target": 1.8 / 3}
    )
    assert total["gain"] == pytest.approx((0.5 + 0.1 + 0.6) / 3)
    assert (total["adopted"], total["decided"]) == (2, 3)
    assert total["coverage"] == pytest.approx(5 / 12)
    ball, hostile = round_["by_prompt"]
    assert [(p["pairs"], p["adopted"], p["decided"]) for p in (ball, hostile)] == [
        (2, 1, 2),
        (1, 1, 1),
    ]
    assert ball["mean"]["target"] == pytest.approx(0.45)
    assert hostile["mean"]["images"] == pytest.approx(0.6)


def test_rate_and_means_count_only_what_is_known(tmp_path: Path) -> None:
    round_ = build(tmp_path, "decided")
    round_.write_adoption((round_.adoption() or [])[:2], {})
    round_.write_scores("target_images", "clip", {0: 0.6})
    view = shown(tmp_path)
    assert (view["summary"]["decided"], view["summary"]["adopted"]) == (2, 1)
    assert view["summary"]["mean"]["target"] == pytest.approx((0.6 + 0.3) / 2)
    assert [p["adopted"] for p in view["pairs"]] == [True, False, None]


def test_mask_is_the_mean_over_fused_steps(tmp_path: Path) -> None:
    write_png(tmp_path / "mask.png", sprite())

    known = read_mask(tmp_path / "mask.png", 1, 4, {3, 2, 1})
    assert known is not None and known.shape == (2, 2)
    assert known.flatten().tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3])
    assert read_mask(tmp_path / "mask.png", 2, 4, {1}) is None
    assert read_mask(tmp_path / "mask.png", 1, 3, {1}) is None


def test_contact_sheet_shows_the_images_it_says(tmp_path: Path) -> None:
    build(tmp_path, "decided")
    page.write(tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "pairs.png").convert("RGB"))
    for column in range(3):
        x = contact_sheet.LEFT + column * (contact_sheet.PANEL + contact_sheet.GAP)
        for row, side in enumerate(contact_sheet.ROWS):
            y = (
                contact_sheet.TOP
                + contact_sheet.LABEL
                + row * (contact_sheet.PANEL + contact_sheet.LINE)
            )
            panel = sheet[y : y + contact_sheet.PANEL, x : x + contact_sheet.PANEL]
            if side == "mask":
                assert {int(v) for v in np.unique(panel)} == {5 * 17, 10 * 17}
                assert panel[0, 0].tolist() == [170] * 3
            else:
                r, g, b = COLOURS["target"]
                grey = getattr(PAIRS[column], side, 0)
                colour = [r, g, b + column] if side == "target" else [grey] * 3
                assert np.unique(panel.reshape(-1, 3), axis=0).tolist() == [colour]
        frame = sheet[y + contact_sheet.PANEL // 2, x - 2].tolist()
        assert frame == ([0x16, 0x83, 0x4A] if ADOPTED[column] else [0xFB, 0xFA, 0xF7])


@pytest.mark.parametrize(("prompts", "each", "count"), [(40, 8, 24), (5, 8, 24), (3, 2, 6)])
def test_contact_sheet_spreads_over_prompts(prompts: int, each: int, count: int) -> None:
    pairs = [
        {"n": p * each + i, "prompt": p, "target": {"there": True}}
        for p in range(prompts)
        for i in range(each)
    ]
    chosen = contact_sheet.spread(pairs, 24)
    per_prompt = [sum(c["prompt"] == p for c in chosen) for p in range(prompts)]
    assert len({c["n"] for c in chosen}) == len(chosen) == count
    assert max(per_prompt) - min(per_prompt) <= 1
    for pair in pairs[1:]:
        pair["target"] = {"there": False}
    assert contact_sheet.spread(pairs, 24) == pairs[:1]


def test_command_rebuilds_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path, "scored")
    monkeypatch.setattr(sys, "argv", ["dfusion", "report", str(tmp_path)])
    assert cli.main() == 0
    assert len(shown(tmp_path)["samples"]) == 6
    assert inline(tmp_path) == page.answers(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dfusion", "report", str(tmp_path / "no such folder")])
    assert cli.main() == 2 and "usage" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["dfusion", "reprot"])
    assert cli.main() == 2 and "no command 'reprot'" in capsys.readouterr().err


def test_comparisons_before_and_after_training(tmp_path: Path) -> None:
    """Image i of each comparison, with its own score, in the order of the rounds."""
    build(tmp_path, "decided")
    for k in (10, 0):
        round_ = Experiment(tmp_path).comparison(k)
        prompt = Prompt("the ball", (Item("ball", 0.5),))
        round_.write_manifest(k, (prompt,), 2, {})
        for i in (0, 1) if k else (1,):  # one image is missing
            write_png(round_.image("images", i), np.full((4, 4, 3), k, np.uint8))
        round_.write_scores("images", "test", {1: 0.25 + k})
    page.write(tmp_path)
    known = inline(tmp_path)["comparisons"]
    assert [c["round"] for c in known["columns"]] == ["compare/epoch0", "compare/epoch10"]
    first, second = (row["cells"] for row in known["rows"])
    assert [(c["there"], c["score"]) for c in first] == [(False, None), (True, None)]
    assert [(c["there"], c["score"]) for c in second] == [(True, 0.25), (True, 10.25)]


def test_a_pair_as_one_picture(tmp_path: Path) -> None:
    round_ = build(tmp_path, "decided")
    sheet = np.asarray(contact_sheet.pair_sheet("exp", "epoch0", round_, shown(tmp_path), 1))
    step = 160 + 16  # pictures of 8 pixels are enlarged to 160
    at = [sheet[108 + 80, 24 + c * step + 80].tolist() for c in (0, 1, 3)]
    assert at == [[3] * 3, [2] * 3, [0, 200, 1]]
    assert {int(v) for v in np.unique(sheet[108:268, 24 + 2 * step : 184 + 2 * step])} == {85, 170}
