"""The table of recipes, from runs whose figures are made up."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from dfusion.errors import UserError
from dfusion.settings.schema import Settings
from dfusion.storage.files import write_json
from experiments.runs import leads as leads_table
from experiments.runs import table, table_plot
from experiments.runs.alignment_plot import Runs
from experiments.runs.leads import Comparison, rows
from experiments.runs.recipes import RECIPES
from experiments.runs.table import HEADING, computation, gain_at, leads, markdown, row, unseen_gains


def run(right: list[int], adopted: float = 0.5, seed: int = 1, **train: Any) -> dict[str, Any]:
    """Two rounds of four images of one prompt, compared after each; right: of eight, then."""
    settings = Settings(seed=seed)
    settings.sample.batch_size, settings.sample.num_batches_per_epoch = 4, 1
    settings.train.num_epochs = 2
    for name, value in train.items():
        setattr(settings.train, name, value)
    compared = [
        {
            "rounds": k,
            "scores": [0.25 * (i < n) for i in range(8)],
            "right": [int(i < n) for i in range(8)],
            "second_scores": [float(i < n) for i in range(8)],
            "diversity": 0.5 + 0.01 * k,
        }
        for k, n in enumerate(right)
    ]
    rounds = [{"images": 4, "adopted": adopted, "noise_norm": 0.9} for _ in range(2)]
    return {"settings": settings.to_dict(), "rounds": rounds, "same_noise": compared}


def test_computation_by_hand() -> None:
    """4 images of 20 steps; two passes over both images of two pairs, forward and backward; and
    three looks at four steps of both (log-probs; noise of the policy and the initial model)."""
    naive = computation(run([0, 0, 0], pairs="naive"))
    assert naive == 4 * 20 + 2 * (2 * 2 * 20) * 2 + 3 * 4 * 2
    assert computation(run([0, 0, 0])) > naive
    assert computation(run([0, 0, 0], compare_images=64)) == computation(run([0, 0, 0]))


def test_gains_are_interpolated_and_not_extrapolated() -> None:
    figures = run([2, 4, 8])
    assert [gain_at(figures, "right", k) for k in (0, 0.5, 1, 1.5, 2)] == [
        0,
        0.125,
        0.25,
        0.5,
        0.75,
    ]
    assert math.isnan(gain_at(figures, "right", 2.1))


def test_a_row_by_hand() -> None:
    seeds, others = [run([2, 4, 8]), run([2, 4, 6], seed=2)], [run([2, 2, 4], seed=2)]
    cells = row("dpo_dfusion", seeds, 2, others)
    found = dict(zip(HEADING, cells, strict=True))
    # Gains of 75 and 50 points; t = 12.706 at one degree of freedom, standard error 12.5.
    assert found["right, by the judge"] == "+62 ± 159"
    assert found["score"] == "+0.156 ± 0.397"
    assert found["diversity"] == "+0.020 ± 0.000" and found["predicted noise"] == "0.90"
    assert found["lead, right"] == "+25"  # of the second seed, 50 points against 25
    assert found["lead, equal computation"] == found["lead, right"]  # both take as much
    assert found["recipe"] == RECIPES["dpo_dfusion"].label and found["seeds"] == "2"
    # One seed: eight images, of which six gained 1 and two 0; sd 0.4629, 1.96 sd / sqrt(8).
    alone = row("dpo_dfusion", seeds[:1], 2, seeds[:1])
    assert alone[2] == "+75 ± 32*"
    assert markdown([alone]).count("\n") == 2


def test_equal_computation_is_interpolated_by_hand() -> None:
    """Beside runs that take three quarters as much; naive ones, which do not fuse."""
    seeds = [run([2, 4, 8]), run([2, 4, 6], seed=2)]
    cheap = [run([2, 3, 4], pairs="naive"), run([2, 2, 2], seed=2, pairs="naive")]
    share = computation(cheap[0]) / computation(seeds[0])
    assert 0.5 < share < 1
    # They gained 25 points in the first round, 50 or 25 in the second; the cheap ones 25 and 0.
    expected = [25 + 50 * (2 * share - 1) - 25, 25 + 25 * (2 * share - 1)]
    assert leads(seeds, cheap, 2, equal_computation=True) == pytest.approx(expected)
    found = row("dpo_dfusion", seeds, 2, cheap)[-1]
    assert found.startswith(f"{sum(expected) / 2:+.0f} ± ")
    assert row("dpo_naive", cheap, 2, seeds)[-1] == ""  # they went no further


def test_unseen_prompts_of_runs_that_went_as_far(tmp_path: Path) -> None:
    for seed, right in {1: [1, 1, 1, 0], 2: [1, 0, 0, 0]}.items():
        models = {
            "base": {"rounds": 0, "right": [1, 0, 0, 0]},
            f"dpo_naive_t1_s{seed}": {"rounds": 2, "right": right},
            f"grpo_t1_s{seed}": {"rounds": 3, "right": right},
        }
        path = tmp_path / f"generalisation_t1_s{seed}.json"
        path.write_text(json.dumps({"seed": seed, "models": models}))
    unseen = unseen_gains(tmp_path, 1)
    assert unseen["dpo_naive", 1, 2] == 50 and unseen["dpo_naive", 2, 2] == 0
    seeds = [run([2, 4, 8]), run([2, 4, 6], seed=2)]
    cells = {name: row(name, seeds, 2, seeds, unseen) for name in ("dpo_naive", "grpo")}
    found = {
        k: dict(zip(HEADING, v, strict=True))["right, unseen prompts"] for k, v in cells.items()
    }
    assert found["dpo_naive"] == "+25 ± 318"  # t = 12.706, standard error 25
    assert found["grpo"] == ""  # measured after three rounds, not two
    assert not unseen_gains(tmp_path, 2)


def test_runs_are_chosen_by_seed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    for name, right in {"dpo_naive": [2, 2, 4], "dpo_dfusion": [2, 4, 8]}.items():
        for seed in (1, 2, 3):
            path = tmp_path / "testbed" / "few" / f"{name}_t1_s{seed}.json"
            write_json(path, run(right, seed=seed))
    flags = ["--runs=few", "--rounds=2", "--beside=dpo_naive"]
    runs = table.chosen(table.arguments("a table", [*flags, "--seeds", "2", "3"]))
    assert {name: [r["settings"]["seed"] for r in seeds] for name, seeds in runs.items()} == {
        "dpo_dfusion": [2, 3],
        "dpo_naive": [2, 3],
    }
    every = table.chosen(table.arguments("a table", flags))
    assert len(every["dpo_naive"]) == 3
    with pytest.raises(UserError, match="no run of template 2"):
        table.chosen(table.arguments("a table", [*flags, "--template=2"]))
    figure, (left, right) = plt.subplots(1, 2)
    table_plot.draw_gains(left, runs, 2)
    table_plot.draw_leads(right, runs, "dpo_naive", 2)
    assert not right.containers  # two seeds
    table_plot.draw_leads(right, every, "dpo_naive", 2)
    dots = [tuple(line.get_xdata()) for line in left.lines if len(line.get_xdata())]
    assert dots == [(75, 75), (75,), (75,), (25, 25), (25,), (25,)]  # a bar, then both runs
    assert [tuple(c[0].get_xdata()) for c in right.containers] == [(50,)]  # none for --beside
    plt.close(figure)


def test_comparisons_are_on_the_seeds_asked_for(tmp_path: Path) -> None:
    """A row of the table of leads, and one of two seeds or more in the figure."""
    gained = {
        1: {"dpo_dfusion": {1: 8, 2: 6, 3: 8}, "dpo_naive": {1: 4, 2: 2, 3: 8, 4: 8}},
        2: {"dpo_dfusion": {1: 2, 2: 2}, "dpo_naive": {2: 4, 1: 2}},
    }
    runs: Runs = {
        template: {
            name: [run([2, right, right], seed=k, pairs="naive") for k, right in seeds.items()]
            for name, seeds in recipes.items()
        }
        for template, recipes in gained.items()
    }
    one = Comparison("dpo_dfusion", "dpo_naive", rounds=2, seeds=(1, 2))
    assert one.found(runs) == one.found(runs, equal_computation=True) == [50, 50]
    assert replace(one, seeds=(1, 9)).found(runs) == [50, 50, 0]
    both = replace(one, seeds=(1, 9), templates=(1, 2))
    assert both.found(runs) == [25, 12.5]  # (50 + 0) / 2 and (50 - 25) / 2; no third seed
    found = rows([one, replace(one, seeds=(1, 1)), both], runs)
    assert [row.of for row in found] == [one, both]  # an interval needs two seeds
    last = leads_table.markdown(found[:1]).splitlines()[-1]
    assert last == "| DPO + D-Fusion | naive DPO | 1 | 96 | 2 | +62 | +12 | +50 ± 0 | +50 ± 0 |"
    leads_table.draw(found, tmp_path / "leads.png")
    assert (tmp_path / "leads.png").exists()


def test_rounds_of_the_other_recipe_may_differ() -> None:
    """What it gained from more images is taken away; runs that did not go as far are left out."""
    runs: Runs = {
        1: {
            "dpo_dfusion": [run([2, 4, 8], seed=k) for k in (1, 2)],
            "dpo_naive": [run([2, 2, 6], seed=1), run([2, 3], seed=2)],
        }
    }
    one = Comparison("dpo_dfusion", "dpo_naive", rounds=1, seeds=(1, 2), against_rounds=2)
    assert one.found(runs) == [-25]  # 25 points after a round, 50 after two
    runs[1]["dpo_naive"][1] = run([2, 2, 2], seed=2)
    (found,) = rows([one], runs)
    assert found.images == [-25, 25] and found.computation == []
    last = leads_table.markdown([found]).splitlines()[-1].split(" | ")
    assert last[2:] == ["1", "48 against 96", "2", "+25", "+25", "+0 ± 318", " |"]


def test_every_comparison_is_of_known_recipes() -> None:
    for one in (
        *leads_table.PAIRS,
        *leads_table.IMAGES,
        *leads_table.PARTS,
        *leads_table.LOSSES,
    ):
        assert {one.recipe, one.against} <= set(RECIPES)
    for one in leads_table.PAIRS:
        ours, theirs = RECIPES[one.recipe], RECIPES[one.against]
        assert (ours.method, theirs.pairs) == (theirs.method, "naive") and ours.pairs == "dfusion"
