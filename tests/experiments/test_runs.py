"""Which runs the experiments make, what they share, and which they take as made."""

import functools
import importlib.util
import json
import subprocess
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from dfusion.errors import UserError
from dfusion.models.plan import plan_of
from dfusion.rounds.session import resolved
from dfusion.settings.plain_values import flat
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import DROPPED, Experiment
from dfusion.storage.files import write_json
from diffusers_patched import LayerTable
from experiments import all as every
from experiments.pairs import chosen_pair
from experiments.runs import alignment, few, side_by_side, sweep
from experiments.runs.recipes import RECIPES
from experiments.runs.shared_start import source_of
from testbed.world.words import mistaken_for, parse
from tests.conftest import small


def begun(settings: Settings, trained: bool = True) -> Experiment:
    """As far as others look: a run with a round that was trained on."""
    experiment = Experiment(Path(settings.save_path) / settings.exp_name)
    write_json(experiment.config_file, {"settings": resolved(settings).to_dict()})
    if trained:
        write_json(experiment.folder / "checkpoints" / "epoch0" / "state.json", {})
    return experiment


def test_a_run_takes_its_beginning_from_one_like_its_own(settings: Settings) -> None:
    """`tests/rounds/test_sharing.py` has what is then taken."""
    begun(small(settings, 1, "another"), trained=False)
    first = small(settings, 1, "first")
    assert source_of(first) == ""
    folder = begun(first).folder
    assert source_of(first) == ""  # not from itself
    written = resolved(first).to_dict()
    del written["allow_tf32"], written["sample"]["eta"]  # as by a version that did not have them
    write_json(folder / "config.json", {"settings": written})
    for flag, value in {
        "train.method": "ddpo",
        "train.pairs": "naive",
        "fusion.steps": "2-1",
        "mask.merge": "or",
        "pair.rule": "quarter",
        "mask_thr": "0.1",
        "keep_trajectories": "none",
    }.items():
        alike = alignment.with_setting(small(settings, 1, "alike"), f"{flag}={value}")
        assert source_of(alike) == str(folder)
    for flag, value in {
        "seed": "7",
        "mixed_precision": "bf16",
        "mask.layers": "mid",
        "sample.eta": "0.5",
        "item_idx_file": "",
        "train.compare_images": "3",
        "pretrained.lora": "some",
    }.items():
        unlike = alignment.with_setting(small(settings, 1, "unlike"), f"{flag}={value}")
        assert source_of(unlike) == ""


def test_a_run_that_fused_alike_comes_first(settings: Settings) -> None:
    for name, change in (
        ("a_naive", "train.pairs=naive"),
        ("b_or", "mask.merge=or"),
        ("c_plain", "train.beta=1"),
        ("d_plain", "train.beta=2"),
    ):
        begun(alignment.with_setting(small(settings, 1, name), change))
    data = Path(settings.save_path)
    other = small(settings, 1, "other")
    assert source_of(other) == str(data / "c_plain")
    assert source_of(alignment.with_setting(other, "mask.merge=or")) == str(data / "b_or")
    assert source_of(alignment.with_setting(other, "mask_thr=0.2")) == str(data / "a_naive")
    write_json(data / "a_naive" / "epoch0" / DROPPED, {})
    assert source_of(alignment.with_setting(other, "mask_thr=0.2")) == str(data / "b_or")


def ablation(name: str, *flags: str) -> list[str]:
    """The command line of experiments.runs.alignment for one of the choices."""
    (found,) = sweep.runs_of(sweep.arguments(["ablations", "--only", name, *flags])).values()
    return found


def test_an_ablation_is_trained_over_the_samples_of_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    curve, flags = (ablation(name) for name in ("as_it_is", "or"))
    made: list[Settings] = []
    folder = begun(alignment.settings_of(alignment.arguments(curve))).folder

    def train(settings: Settings) -> None:
        made.append(settings)
        raise SystemExit

    monkeypatch.setattr(alignment, "train_rounds", train)
    monkeypatch.setattr(alignment.Meters, "of", lambda *args: None)
    monkeypatch.setattr("sys.argv", ["alignment", *flags])
    with pytest.raises(SystemExit):
        alignment.main()
    assert made[0].mask.merge == "or" and made[0].samples_from == str(folder)


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
    tried = 2 * len(sweep.RATES["testbed"]) if preset == "testbed" else 0  # naive and fused
    once = len(sweep.CHOICES) - 1 + tried  # the preset itself is a curve
    assert len(set(runs[0])) == len(runs[0]) == len(every.CURVES) + both + once
    assert len(set(runs[1])) == len(runs[1]) == 2 * len(every.CURVES) + once
    assert all(stage.evaluations > 0 for stage in stages if stage.settings)
    flags = [f"--preset={preset}", "--seed=1"]
    sweeps = ("rates", "ablations") if preset == "testbed" else ("ablations",)
    needed = [f for s in sweeps for f in sweep.runs_of(sweep.arguments([s, *flags])).values()]
    assert {alignment.result_of(alignment.arguments(f)) for f in needed} <= set(runs[0])


@pytest.mark.parametrize("preset", ["testbed", "paper"])
def test_every_stage_is_a_command(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    for stage in every.stages(every.arguments([f"--preset={preset}"])):
        assert importlib.util.find_spec(stage.module) is not None, stage.module


@pytest.mark.parametrize("template", [1, 2, 3])
def test_runs_on_the_testbed_have_whole_cycles_of_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: int
) -> None:
    """What training makes likelier for all prompts alike must help none."""
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    run = alignment.settings_of(alignment.arguments([f"--template={template}"]))
    prompts = json.loads(Path(run.prompt_file).read_text())
    assert {mistaken_for(parse(text)).prompt for text in prompts} == set(prompts)
    assert len({parse(text).shape for text in prompts}) >= 4


@pytest.mark.parametrize(
    ("template", "lengths"),
    [(1, [3, 3, 3, 3, 3, 3]), (2, [6, 3, 6, 3, 6, 3]), (3, [2, 2, 2, 2, 2, 2])],
)
def test_short_runs_have_a_cycle_of_mistakes_each(
    template: int, lengths: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    cycles = []
    for k in range(1, few.CYCLES + 1):
        flags = few.flags_of("dpo_naive", k, template=template)
        run = alignment.settings_of(alignment.arguments(flags))
        prompts = json.loads(Path(run.prompt_file).read_text())
        assert {mistaken_for(parse(text)).prompt for text in prompts} == set(prompts)
        assert run.seed == k and len(prompts) == lengths[k - 1]
        assert run.images_per_prompt * len(prompts) == 48
        assert run.train.compare_images * len(prompts) == 96
        cycles.append(frozenset(prompts))
    flags = few.flags_of("dpo_naive", 7, template=template, rounds=2)
    again = alignment.settings_of(alignment.arguments(flags))
    assert set(json.loads(Path(again.prompt_file).read_text())) == cycles[0]
    assert again.seed == 7 and again.train.num_epochs == 2
    every = json.loads(alignment.prompts_file("testbed", template, "train").read_text())
    assert frozenset.union(*cycles) == set(every[: sum(lengths)]) and len(set(cycles)) == 6


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
@pytest.mark.parametrize("name", sweep.CHOICES)
def test_an_ablation_changes_what_it_says_and_nothing_else(
    name: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)

    def settings(choice: str) -> dict[str, object]:
        run = alignment.arguments(ablation(choice, f"--preset={preset}"))
        return flat(alignment.settings_of(run).to_dict())

    run = alignment.arguments(ablation(name, f"--preset={preset}"))
    plan_of(alignment.settings_of(run), layers_of(preset))  # raises for what a run would refuse
    plain, chosen = settings("as_it_is"), settings(name)
    differ = {flag for flag in plain if plain[flag] != chosen[flag]} - {"exp_name"}
    named = {change.partition("=")[0] for change in sweep.CHOICES[name][1]}
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
    flags = ablation("or", "--rounds=1")
    run = alignment.arguments(flags)
    figures = {"settings": alignment.settings_of(run).to_dict()}
    figures["same_noise"] = [{"rounds": 0}, {"rounds": 1}]
    write_json(alignment.result_of(run), figures)
    assert list(side_by_side.there({"or": flags}, 1)) == ["or"]
    assert not side_by_side.there({"or": flags}, 2)
    del figures["settings"]["eval"]["vlm_model"]  # as by a version that did not have it
    write_json(alignment.result_of(run), figures)
    assert list(side_by_side.there({"or": flags}, 1)) == ["or"]
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


def test_rates_are_chosen_for_every_recipe_alike_on_prompts_that_nothing_else_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "DATA", tmp_path)
    # A recipe named _fast is another one at a higher rate.
    names = [name for name in RECIPES if not name.endswith("_fast")]
    args = sweep.arguments(["rates", "--recipes", *names])
    runs = [alignment.arguments(flags) for flags in sweep.runs_of(args).values()]
    settings = [alignment.settings_of(run) for run in runs]
    tried = {(run.recipe, s.train.learning_rate) for run, s in zip(runs, settings, strict=True)}
    assert tried == {*product(names, sweep.RATES["testbed"])} and len(tried) == len(runs)
    assert len({run.exp_name for run in settings}) == len(runs)
    compared = [{**flat(run.to_dict()), "exp_name": ""} for run in settings]
    assert all(a != b for a, b in combinations(compared, 2)), "no recipe is another one"
    for name, recipe in RECIPES.items():  # on other presets, the rate is the preset's
        paper = alignment.settings_of(alignment.arguments([f"--recipe={name}", "--preset=paper"]))
        assert paper.train.learning_rate == 1e-4 and paper.train.method == recipe.method
    (held,) = {run.prompt_file for run in settings}
    listed = alignment.prompts_file("testbed", 1, "held")
    assert json.loads(Path(held).read_text()) == json.loads(listed.read_text())


@pytest.mark.parametrize("template", [1, 2, 3])
def test_held_out_prompts_say_what_no_other_list_says(template: int) -> None:
    kinds = ("held", "train", "test")
    lists = [json.loads(alignment.prompts_file("testbed", template, k).read_text()) for k in kinds]
    held, train, test = ({parse(text).canonical for text in part} for part in lists)
    assert len(held) >= 6 and not held & (train | test)
    assert {mistaken_for(parse(text)).prompt for text in lists[0]} == set(lists[0])
