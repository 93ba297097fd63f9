"""Which runs the experiments make, what they share, and which they take as made."""

import functools
import json
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from config.config import PRESETS
from dfusion.errors import UserError
from dfusion.files import write_json
from dfusion.fusion import plan_of
from dfusion.runs import resolved
from dfusion.settings import Settings, flat
from dfusion.store import Experiment
from dfusion.training import train_rounds
from diffusers_patched import LayerTable
from experiments import (
    ablations,
    alignment,
    chosen_pair,
    rates,
    side_by_side,
)
from experiments import all as every
from experiments.shared_start import borrow
from testbed.words import SHAPES
from tests.conftest import small


def test_a_run_borrows_only_a_beginning_like_its_own(settings: Settings) -> None:
    first = small(settings, 1, "first")
    first.train.compare_images = 1
    train_rounds(first)
    other = small(first, 1, "other")
    other.train.method, other.train.pairs, other.train.compare_images = "ddpo", "naive", 1
    other.mask.merge, other.allow_config_change = "or", True
    assert borrow(other) == "first"
    copied = Experiment(Path(other.save_path) / "other")
    made = {p: p.stat().st_mtime_ns for p in copied.folder.rglob("*") if p.is_file()}
    assert copied.round(0).pairs() is None
    train_rounds(other)
    assert all_same(made)  # nothing was sampled again
    assert borrow(other) is None

    alone = small(other, 1, "alone")
    alone.train.compare_images = 1
    train_rounds(alone)
    a, b = (Experiment(Path(alone.save_path) / name) for name in ("alone", "other"))
    assert a.round(0).scores("images") == b.round(0).scores("images")
    weights = "checkpoints/epoch0/pytorch_lora_weights.safetensors"
    one, two = (load_file(experiment.folder / weights) for experiment in (a, b))
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)

    reseeded, halved = (small(other, 1, name) for name in ("reseeded", "halved"))
    reseeded.seed += 1
    halved.mixed_precision = "bf16"
    assert borrow(reseeded) is None and borrow(halved) is None


def test_a_run_borrows_targets_where_it_fuses_alike(settings: Settings) -> None:
    naive, first, other = (small(settings, 1, name) for name in ("a_naive", "first", "other"))
    naive.train.pairs = "naive"
    for run in (naive, first):
        run.train.compare_images = other.train.compare_images = 1
        train_rounds(run)
    other.train.beta, other.pair.adoption = 1.0, "all"
    assert borrow(other) == "first"  # though the naive run is listed before it
    copied = Experiment(Path(other.save_path) / "other")
    made = {p: p.stat().st_mtime_ns for p in copied.folder.rglob("*") if p.is_file()}
    assert copied.round(0).target(0) in made and copied.round(0).adoption() is None
    train_rounds(other)
    assert all_same(made)  # nothing was fused again
    rows = copied.round(0).adoption()
    assert rows and all(row["adopted"] for row in rows)

    changes = {"fusion.steps": "19-1", "mask.merge": "or", "pair.rule": "quarter"}
    for n, (flag, value) in enumerate(changes.items()):
        unlike = alignment.with_setting(small(other, 1, f"unlike{n}"), f"{flag}={value}")
        assert borrow(unlike)
        assert Experiment(Path(other.save_path) / f"unlike{n}").round(0).pairs() is None


def all_same(made: dict[Path, int]) -> bool:
    return all(path.stat().st_mtime_ns == time for path, time in made.items())


@pytest.mark.parametrize("preset", ["testbed", "paper"])
def test_every_training_run_has_a_name_of_its_own(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    args = every.arguments([f"--preset={preset}", "--seeds", "1", "2"])
    stages = every.stages(args)
    full = every.stages(every.arguments([f"--preset={preset}", "--seeds", "1", "2", "--full"]))
    runs = [[s.result for s in of if s.settings] for of in (stages, full)]
    both = 2 if preset == "testbed" else len(every.CURVES)  # curves that every seed has
    tried = 3 * (len(rates.RATES["testbed"]) - 1) if preset == "testbed" else 0  # templates
    once = len(ablations.CHOICES) - 1 + tried  # the preset itself is a curve
    assert len(set(runs[0])) == len(runs[0]) == len(every.CURVES) + both + once
    assert len(set(runs[1])) == len(runs[1]) == 2 * len(every.CURVES) + once
    assert all(stage.evaluations > 0 for stage in stages if stage.settings)
    flags = [f"--preset={preset}", "--seed=1"]
    asked = ablations.arguments(flags)
    needed = [ablations.flags_of(name, asked) for name in ablations.CHOICES]
    needed += rates.runs_of(rates.arguments(flags)).values() if preset == "testbed" else []
    assert {alignment.result_of(alignment.arguments(f)) for f in needed} <= set(runs[0])


@pytest.mark.parametrize(
    ("template", "shapes"), [(1, {"star", "square"}), (2, {"star"}), (3, {"star"})]
)
def test_runs_on_the_testbed_are_about_stars_and_squares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: int, shapes: set[str]
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    run = alignment.settings_of(alignment.arguments([f"--template={template}"]))
    prompts = json.loads(Path(run.prompt_file).read_text())
    assert {next(word for word in text.split() if word in SHAPES) for text in prompts} == shapes


def test_a_run_of_fewer_rounds_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    monkeypatch.setattr(alignment, "RESULTS", tmp_path)
    brief, full = (
        next(s for s in every.stages(every.arguments(flags)) if s.settings and "ddpo" in str(s))
        for flags in ([], ["--full"])
    )
    assert brief.settings and brief.result and brief.result == full.result and not brief.done
    checkpoint = tmp_path / "alignment_testbed" / brief.settings.exp_name / "checkpoints/epoch1"
    brief.result.parent.mkdir(parents=True)
    brief.result.write_text(json.dumps({"settings": brief.settings.to_dict()}))
    assert not brief.done  # figures without the run, as in a fresh clone
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    assert brief.done and not full.done
    other = every.stages(every.arguments(["--model=another"]))
    assert not any(stage.done for stage in other)


def test_a_run_begun_with_other_settings_is_refused_by_its_own_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    run = alignment.settings_of(alignment.arguments(["--device=cpu"]))
    alignment.check_same(run)  # not begun
    begun = resolved(run).to_dict()
    write_json(alignment.folder_of(run) / "config.json", {"settings": begun})
    alignment.check_same(run)
    other = alignment.with_setting(run, "mask.merge=or")
    with pytest.raises(UserError, match=r"mask.merge \(xor -> or\); give another --name"):
        alignment.check_same(other)


def test_a_run_is_taken_for_its_own_template_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    run = alignment.settings_of(alignment.arguments(["--template=2", "--name=mine"]))
    folder = alignment.folder_of(run)
    with pytest.raises(UserError, match="--names mine: no checkpoint"):
        alignment.run_of("mine", "testbed", 2)
    write_json(folder / "config.json", {"settings": run.to_dict()})
    write_json(folder / "checkpoints" / "epoch0" / "state.json", {})
    assert alignment.run_of("mine", "testbed", 2) == run
    with pytest.raises(UserError, match="--names mine: not a run of template 1"):
        alignment.run_of("mine", "testbed", 1)


def test_a_figure_of_another_seed_is_not_done(tmp_path: Path) -> None:
    one, two = (
        chosen_pair.parser(None).parse_args(["--out", str(tmp_path), "--seed", seed])
        for seed in ("1", "2")
    )
    path = chosen_pair.path_of("cross_maps", one)
    assert not chosen_pair.drawn_before("cross_maps", one)
    path.with_suffix(".json").write_text(json.dumps({"asked": chosen_pair.asked(one)}))
    assert chosen_pair.drawn_before("cross_maps", one)
    assert not chosen_pair.drawn_before("cross_maps", two)


@functools.cache
def layers_of(preset: str) -> LayerTable:
    """Of the preset's UNet, without weights."""
    sd21 = {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    }
    small = Path("testbed/weights/diffusion/unet/config.json")
    with torch.device("meta"):
        config = sd21 if preset == "paper" else json.loads(small.read_text())
        return LayerTable.of(UNet2DConditionModel.from_config(config))


@pytest.mark.parametrize("preset", ["testbed", "paper"])
@pytest.mark.parametrize("name", ablations.CHOICES)
def test_an_ablation_changes_what_it_says_and_nothing_else(
    name: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)

    def settings(choice: str) -> dict[str, object]:
        args = ablations.arguments([f"--preset={preset}"])
        run = alignment.arguments(ablations.flags_of(choice, args))
        return flat(alignment.settings_of(run).to_dict())

    run = alignment.arguments(ablations.flags_of(name, ablations.arguments([f"--preset={preset}"])))
    plan_of(alignment.settings_of(run), layers_of(preset))  # raises for what a run would refuse
    plain, chosen = settings("as_it_is"), settings(name)
    differ = {flag for flag in plain if plain[flag] != chosen[flag]} - {"exp_name"}
    named = {change.partition("=")[0] for change in ablations.CHOICES[name].changes}
    assert named - differ <= {"mask_thr"}  # auto is what the flag says where there is no file
    assert differ <= named


@pytest.mark.parametrize(
    "change", ["train.bet=1", "train.beta=high", "train=1", "mask.merge.x=1", "bogus.seed=7"]
)
def test_a_change_of_no_setting_is_refused(change: str) -> None:
    with pytest.raises(UserError, match="--set"):
        alignment.with_setting(Settings(), change)


def test_figures_of_other_rounds_settings_or_names_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    monkeypatch.setattr(alignment, "RESULTS", tmp_path)
    flags = ablations.flags_of("or", ablations.arguments(["--rounds=1"]))
    run = alignment.arguments(flags)
    figures = {"settings": alignment.settings_of(run).to_dict()}
    figures["same_noise"] = [{"rounds": 0}, {"rounds": 1}]
    write_json(alignment.result_of(run), figures)
    assert list(side_by_side.there({"or": flags}, 1)) == ["or"]
    assert not side_by_side.there({"or": flags}, 2)
    assert not side_by_side.there({"or": [*flags, "--set=train.learning_rate=0.01"]}, 1)
    assert not side_by_side.there({"no mask": [*flags, "--name=ablation_no_mask"]}, 1)


def test_runs_that_are_missing_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    monkeypatch.setattr(alignment, "RESULTS", tmp_path)
    commands: list[list[str]] = []

    def train(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command[3:])
        run = alignment.arguments(command[3:])
        rows = [{"rounds": 0}, {"rounds": 2}]  # whatever was asked for
        figures = {"settings": alignment.settings_of(run).to_dict(), "same_noise": rows}
        write_json(alignment.result_of(run), figures)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", train)
    runs = {"or": ["--name=or", "--set=mask.merge=or"], "preset": ["--rounds=2"]}
    side_by_side.make(runs, 2)
    side_by_side.make(runs, 2)
    assert commands == list(runs.values())
    with pytest.raises(SystemExit, match="--rounds 1: the run 'or' went further"):
        side_by_side.make(runs, 1)


def test_rates_are_compared_with_the_curve_at_the_presets_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    args = rates.arguments([])
    runs = [alignment.arguments(flags) for flags in rates.runs_of(args).values()]
    settings = [alignment.settings_of(run) for run in runs]
    assert {run.train.learning_rate for run in settings} == set(args.rates)
    assert {run.train.pairs for run in settings} == {"naive"}
    usual = PRESETS["testbed"]().train.learning_rate
    curves = {f"dpo_naive_t{template}_s42" for template in (1, 2, 3)}  # experiments.all's
    assert {run.exp_name for run in settings if run.train.learning_rate == usual} == curves
    assert len({run.exp_name for run in settings}) == len(runs) == 3 * len(args.rates)
