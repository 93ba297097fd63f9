"""What the experiments compute, apart from the runs themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from dfusion.method.pairing.contract import Pair
from dfusion.settings.presets import PRESETS
from dfusion.storage.experiment import Round
from diffusers_patched import LayerTable, SD3Transformer2DModel
from experiments.measures.intervals import gain, over_groups, over_seeds
from experiments.measures.measure import diversity
from experiments.pairs import blocks, difference, fusion_grid, mask_quality, steps_layers
from experiments.runs import alignment_plot, generalisation, parts, side_by_side
from testbed.models.exchange_joint import POINTING
from testbed.models.sd3 import CONFIG


def test_gain_is_the_paired_normal_interval() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=400), rng.normal(0.3, 1, size=400)
    mean, half = gain(after, before)
    test = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert mean == pytest.approx((test.high + test.low) / 2)
    assert half == pytest.approx((test.high - test.low) / 2, rel=0.01)  # t is near to normal


def test_images_of_one_prompt_count_as_one() -> None:
    after, before = [1.0, 3.0, 4.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    mean, half = over_groups(after, before, each=2)  # prompts gain 2, 4 and -1
    deviation = ((2 - 5 / 3) ** 2 + (4 - 5 / 3) ** 2 + (-1 - 5 / 3) ** 2) / 2
    assert mean == pytest.approx(5 / 3)
    assert half == pytest.approx(4.302653 * (deviation / 3) ** 0.5, rel=1e-6)  # t, 2 degrees


def test_diversity_compares_images_of_one_prompt_only() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert diversity(np.stack([a, a, b, b]), ["x", "x", "y", "y"]) == pytest.approx(0)
    assert diversity(np.stack([a, b]), ["x", "x"]) > 0.5


def test_overlap_of_masks_by_hand() -> None:
    full = torch.ones(2, 2, dtype=torch.bool)
    corner, left = full.clone(), full.clone()
    corner[1], corner[0, 1], left[:, 1] = False, False, False
    masks, truths = torch.stack([corner, full, ~full]), torch.stack([left, left, left])
    assert mask_quality.overlap(masks, truths) == {
        "overlap": pytest.approx((1 / 2 + 2 / 4 + 0) / 3, abs=1e-4),
        "precision": pytest.approx((1 + 1 / 2 + 0) / 3, abs=1e-4),
        "recall": pytest.approx((1 / 2 + 1 + 0) / 3, abs=1e-4),
        "coverage": pytest.approx((1 + 4 + 0) / 12, abs=1e-4),
    }


def test_difference_in_and_outside_of_the_mask_by_hand() -> None:
    base, other = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    other[0, :, :2], other[0, 0, 3] = 3.0, 1.0  # left half of 4 cells, and one cell on the right
    mask = torch.tensor([[True, False]])  # on a coarser grid
    assert difference.split(other, base, mask).tolist() == pytest.approx([4 * 9 / 8, 1 / 8])


def test_what_fusion_corrects_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """White images are right: of four wrong bases, three have a right reference, and two of their
    targets are right."""
    white = {"base": [0, 0, 0, 0, 1], "reference": [1, 1, 1, 0, 1], "target": [1, 1, 0, 1, 1]}
    for kind, found in white.items():
        (tmp_path / f"{kind}_images").mkdir()
        for p, right in enumerate(found):
            path = tmp_path / f"{kind}_images" / f"{p:05d}.png"
            Image.new("RGB", (2, 2), (255 * right,) * 3).save(path)

    class White:
        def satisfied(self, images: np.ndarray, prompts: list[str]) -> torch.Tensor:
            assert prompts == ["a star"] * 5
            return torch.from_numpy(images[:, 0, 0, 0] > 0)

    monkeypatch.setattr(Round, "pairs", lambda self: (Pair("a star", 0, 1),) * 5)
    found = difference.corrected(Round(tmp_path), White())  # type: ignore[arg-type]
    assert found == {"base": 0.2, "reference": 0.8, "target": 0.8, "mendable": 3, "mended": 2}


def test_the_mask_of_a_target_is_that_of_most_fused_steps() -> None:
    steps = [[1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    masks = torch.tensor(steps, dtype=torch.bool).view(6, 2, 2)  # the last two were not fused
    assert difference.usual_mask(masks).flatten().tolist() == [True, True, False, False]


@pytest.fixture(scope="module")
def transformer() -> LayerTable:
    """The layers of the testbed's transformer."""
    with torch.device("meta"):
        return SD3Transformer2DModel(**CONFIG).layer_table((16, 16))


def test_the_grid_names_layers_of_each_model(transformer: LayerTable) -> None:
    for cell in fusion_grid.grid_cells("testbed_sd3"):
        assert transformer.parse(cell.layers)
    cells = fusion_grid.grid_cells("testbed")
    own = [c for c in cells if (c.merge, c.threshold) == ("xor", "file")]
    assert {c.layers for c in own} == {"mid", "up", "mid,up", "all"} and len(own) == 16
    settings = PRESETS["testbed_sd3"]()
    assert transformer.parse(settings.mask.layers) == {*POINTING}


def test_fig_9_has_a_row_for_each_block_of_a_transformer(transformer: LayerTable) -> None:
    rows = steps_layers.rows(transformer)
    singles = [layers for layers in rows.values() if len(layers) == 1]
    assert singles == [frozenset({n}) for n in range(6)]
    assert rows["late third"] == {4, 5} and rows["all"] == set(range(6))


def test_sets_of_blocks() -> None:
    sets = blocks.block_sets(3)
    assert sets["all but one"]["1"] == {0, 2}
    assert sets["the first ones"]["0-1"] == {0, 1}
    assert sets["the last ones"]["1-2"] == {1, 2}


def test_figures_by_step_leave_out_what_is_not_known() -> None:
    one = {"updates": [{"x": [1.0, None, None]}, {"x": [3.0, 4.0, None]}]}
    two = {"updates": [{"x": [5.0, None, None]}]}
    np.testing.assert_equal(parts.by_step([one, two], "x"), [3.5, 4.0, np.nan])


def test_the_interval_over_seeds_is_students() -> None:
    gains = [0.02, 0.05, 0.03]
    mean, half = over_seeds(gains)
    wanted = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((wanted.low, wanted.high))


def made_up(seed: int, scores: dict[int, list[float]]) -> dict:
    """The figures of a run with these scores after so many rounds."""
    rows = [{"rounds": k, "scorer": sum(s) / len(s), "scores": s} for k, s in scores.items()]
    return {"settings": {"seed": seed}, "rounds": [{"images": 100}], "same_noise": rows}


def test_seeds_that_went_further_do_not_distort_the_curves() -> None:
    naive = [made_up(1, {0: [0, 2], 3: [1, 3]}), made_up(2, {0: [0, 0], 3: [1, 1], 6: [3, 5]})]
    fused = [made_up(1, {0: [0, 2], 3: [4, 2]}), made_up(2, {0: [0, 0], 3: [2, 0], 6: [6, 6]})]
    used, values = alignment_plot.curves(naive, "scorer")
    assert used.tolist() == [0, 300, 600]
    assert np.array_equal(values, [[1, 2, np.nan], [0, 1, 4]], equal_nan=True)
    three, six = alignment_plot.summary("dpo_naive", naive)
    assert "rounds 3, seeds 2" in three and "0.500 -> 1.500 (+1.000 ± 0.000)" in three
    assert "rounds 6, seeds 1" in six and "0.000 -> 4.000" in six and "over seeds" not in six
    pairs = alignment_plot.pairs_of({"dpo_naive": naive, "dpo_dfusion": fused}, "dpo")
    after3, after6 = alignment_plot.against_naive(pairs)
    wide = stats.t.ppf(0.975, 1) * 0.5  # gains 1 and 0 more: standard error 0.5
    assert f"+0.500 ± {wide:.3f} (1: +1.000, 2: +0.000)" in after3
    # Of one seed, by image: 6 and 6 gained against 3 and 5, so 3 and 1 more; deviation sqrt 2.
    assert "+2.000 (2: +2.000) ± 1.960 over images" in after6


def test_templates_are_compared_one_by_one_and_together(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(seed: int, *ends: float) -> dict:
        return made_up(seed, {2 * n: [end, end] for n, end in enumerate((0, *ends))})

    one = {"dpo_naive": [run(7, 1), run(8, 1)], "dpo_dfusion": [run(7, 2), run(8, 4)]}
    two = {"dpo_naive": [run(7, 3, 0)], "dpo_dfusion": [run(7, 6, 5)]}
    alignment_plot.print_differences({1: one, 2: two})
    seeds = stats.t.ppf(0.975, 1) * 1.0  # 1 and 3 more: standard error 1
    templates = stats.t.ppf(0.975, 1) * 0.5  # 2 and 3 more
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        (
            "dpo: D-Fusion more, template 1, by seed, after 2 rounds, scores: "
            f"+2.000 ± {seeds:.3f} (7: +1.000, 8: +3.000)"
        ),
        (
            "dpo: D-Fusion more, template 2, by seed, after 2 rounds, scores: +3.000 (7: +3.000) "
            "± 0.000 over images"
        ),
        (
            "dpo: D-Fusion more, template 2, by seed, after 4 rounds, scores: +5.000 (7: +5.000) "
            "± 0.000 over images"
        ),
        (
            "dpo: D-Fusion more, by template, after 2 rounds, scores: "
            f"+2.500 ± {templates:.3f} (1: +2.000, 2: +3.000)"
        ),
    ]


def test_a_lead_is_paired_by_image() -> None:
    def run(*scores: float) -> dict:
        rows = [(0, [0.0, 9.0]), (2, list(scores)), (4, [7.0, 7.0])]
        made = [{"rounds": k, "scores": s, "right": [], "second_scores": []} for k, s in rows]
        return {"same_noise": made}

    lead = side_by_side.leads_of(run(5.0, 6.0), run(4.0, 2.0), 2)  # 1 and 4 more
    assert lead["score"] == (2.5, pytest.approx(1.96 * 1.5)) and lead["right"] is None


def test_unseen_prompts_are_drawn_by_template_and_seed(tmp_path: Path) -> None:
    def model(rounds: int, *scores: float) -> dict[str, object]:
        return {"rounds": rounds, "scores": scores, "right": [0, 1], "second": []}

    base, run, other = model(0, 0, 0), model(6, 1, 3), model(2, 5, 5)
    models = {"base": base, "dpo_naive_t2_s7": run, "dpo_naive_t1_s7": other}
    saved = {"template": 2, "seed": 7, "images per prompt": 1, "models": models}
    (tmp_path / "generalisation_t2_s7.json").write_text(json.dumps(saved))
    drawn: dict[str, dict] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generalisation, "draw", lambda rows, path: drawn.update(rows))
        generalisation.redraw(tmp_path)
    own, foreign = drawn
    assert own == "template 2, seed 7: naive DPO, 6 rounds"
    assert foreign == "template 2, seed 7: dpo_naive_t1_s7, 2 rounds"  # trained on another template
    wide = stats.t.ppf(0.975, 1) * 1.0  # two prompts, gains 1 and 3
    assert drawn[own]["score"] == (2.0, pytest.approx(wide)) and drawn[own]["second"] is None
    assert generalisation.redraw(tmp_path).stat().st_size > 1000


def test_loss_on_unseen_pairs_by_hand() -> None:
    """Round 0: first update, then one below log 2 by 4e-5; round 1: by 2e-5; passes after the first
    have seen all pairs."""

    def run(seed: int, *below: float) -> dict:
        first, second = below or (0.0, 0.0)
        losses = [(0, 0, 9.0), (0, 0, first), (0, 1, 9.0), (1, 0, 9.0), (1, 0, second)]
        updates = [
            {"round": k, "inner_epoch": inner, "loss": np.log(2) - b * 1e-5}
            for k, inner, b in losses
        ]
        train = {"updates_per_inner_epoch": 2 if below else 1}  # with one, none is unseen
        return {"settings": {"seed": seed, "train": train}, "updates": updates}

    assert parts.unseen(run(1, 4.0, 2.0)) == pytest.approx(3e-5)
    runs = {1: {"dpo_dfusion": [run(1, 4.0, 2.0), run(2, 5.0, 5.0)], "dpo_naive": [run(1, 1, 1)]}}
    assert parts.unseen_lines(runs) == []  # one seed has both
    once = {kind: [run(seed) for seed in (1, 2)] for kind in ("dpo_dfusion", "dpo_naive")}
    assert parts.unseen_lines({1: once}) == []
    runs[1]["dpo_naive"].append(run(2, 0.5, 1.5))
    (line,) = parts.unseen_lines(runs)
    half = stats.t.ppf(0.975, 1)  # of 3 and 5: mean 4, deviation sqrt 2, by sqrt 2 runs
    assert f"2 runs: D-Fusion 4.00 ± {half:.2f}e-5, naive 1.00 ± 0.00e-5" in line
    assert f"D-Fusion more 3.00 ± {half:.2f}e-5" in line


def test_liked_but_wrong_by_hand() -> None:
    before = {"rounds": 0, "scores": [1.0, 2.0, 3.0, 4.0], "right": [0, 1, 1, 0]}
    hacked = {"rounds": 3, "scores": [4.0, 4.0, 2.0, 4.0], "right": [0, 0, 1, 1]}
    run = {"same_noise": [before, hacked]}
    assert alignment_plot.liked_but_wrong(run, 0) == pytest.approx(1 / 2)
    assert alignment_plot.liked_but_wrong(run, 3) == pytest.approx(2 / 3)
