"""Samples taken over from another experiment: which, how, and what is refused."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfusion.commands.verify import verify
from dfusion.errors import UserError
from dfusion.models import loading
from dfusion.rounds import runner
from dfusion.rounds.session import sample_rounds
from dfusion.settings.plain_values import flat
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment
from dfusion.training.trainer import train_rounds
from tests import rewards
from tests.conftest import PROMPTS, make_settings, small
from tests.faults import contents, difference


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Settings:
    """Settings of one round on "a0", of which two are there, for others to take samples from."""
    settings = small(make_settings(tmp_path_factory.mktemp("lent"), pipeline_folder), 2, "a0")
    train_rounds(settings)
    return small(settings, 1, "a0")


def changed(settings: Settings, name: str, flags: dict[str, Any] | None = None) -> Settings:
    """Under another name, with other flags."""
    values = settings.to_dict()
    for flag, value in {"exp_name": name, **(flags or {})}.items():
        group, _, field = flag.rpartition(".")
        assert flag in flat(values)
        (values[group] if group else values)[field] = value
    return Settings.of(values)


def of_a0(lent: Settings, name: str, **flags: Any) -> Settings:
    """An experiment over the samples of "a0"."""
    source = {"samples_from": f"{lent.save_path}/a0"}
    return changed(lent, name, {**source, **{k.replace("__", "."): v for k, v in flags.items()}})


def round_0(settings: Settings) -> Any:
    return Experiment(Path(settings.save_path) / settings.exp_name).round(0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What is sampled, fused or scored from here on."""
    seen: set[str] = set()

    def noting(name: str, work: Callable) -> Callable:
        def noted(*args: Any) -> Any:
            seen.add(name)
            return work(*args)

        return noted

    for name in ("sample", "make_targets"):
        monkeypatch.setattr(runner, name, noting(name, getattr(runner, name)))
    monkeypatch.setattr(rewards, "redness", noting("score", rewards.redness))
    return seen


def ends_as_alone(run: Settings) -> None:
    """The same command without the flag makes the same files, comparisons and weights included."""
    folder = Path(run.save_path) / run.exp_name
    alone = train_rounds(replace(run, exp_name=f"{run.exp_name}_alone", samples_from=""))
    assert difference(contents(alone), contents(folder)) == []
    assert verify(folder) == []


def test_samples_and_scores_are_taken_and_nothing_is_sampled_again(
    lent: Settings, made: set[str], capsys: pytest.CaptureFixture
) -> None:
    run = of_a0(lent, "later", fusion__steps="2-1")
    folder = sample_rounds(run)
    assert made == {"make_targets", "score"}  # the targets'
    own, theirs = round_0(run), round_0(lent)
    for mine, other in (
        *((own.image("images", i), theirs.image("images", i)) for i in range(8)),
        *((own.trajectory(i), theirs.trajectory(i)) for i in range(8)),
        (own.scores_file("images"), theirs.scores_file("images")),
    ):
        assert mine.samefile(other) and not mine.is_symlink()
    assert not own.target(0).samefile(theirs.target(0))
    told = f"took 8 samples, their scores from {theirs.folder}"
    assert told in capsys.readouterr().out
    made.clear()
    sample_rounds(replace(run, samples_from="gone"))  # what has begun takes nothing over
    assert made == set() and verify(folder) == []


def test_a_run_over_them_ends_as_one_that_sampled_itself(lent: Settings, made: set[str]) -> None:
    """Thresholds and adoption may differ; comparisons before training are taken over too."""
    run = of_a0(lent, "otsu", mask_thr="0.06", pair__adoption="all", keep_trajectories="none")
    before = contents(Path(lent.save_path) / "a0")
    train_rounds(run)
    compared = Experiment(Path(run.save_path) / "otsu").comparison(0).image("images", 0)
    assert compared.stat().st_nlink == 2
    assert difference(before, contents(Path(lent.save_path) / "a0")) == []  # nothing of theirs went
    ends_as_alone(run)


def test_targets_are_taken_too_where_they_were_fused_alike(lent: Settings, made: set[str]) -> None:
    run = of_a0(lent, "beta", train__beta=1.0, pair__adoption="all", train__compare_images=0)
    train_rounds(run)
    assert made == set()
    assert round_0(run).target(0).samefile(round_0(lent).target(0))
    assert all(row["adopted"] for row in round_0(run).adoption())
    for flag, value in (("mask__merge", "or"), ("fusion__text", "own")):
        sample_rounds(of_a0(lent, f"unlike_{value}", **{flag: value}))
        assert "make_targets" in made and "sample" not in made
        made.clear()
    naive = of_a0(lent, "naive", train__pairs="naive", train__compare_images=0)
    train_rounds(naive)
    assert made == set() and not round_0(naive).target(0).exists()


def test_the_models_own_size_may_be_named(lent: Settings, made: set[str]) -> None:
    sample_rounds(of_a0(lent, "sized", sample__height=16, sample__width=16))
    assert made == set()


def test_scores_of_another_reward_are_not_taken(
    lent: Settings, made: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "dark", lambda images, texts: [0.5] * len(images), raising=False)
    run = of_a0(lent, "dark", eval__reward="tests.rewards:dark")
    sample_rounds(run)
    assert "sample" not in made
    assert set(round_0(run).scores("images", "tests.rewards:dark").values()) == {0.5}


BEFORE_A_MODEL = [
    ({"seed": 6}, r"seed \(5 -> 6\)"),
    ({"sample.guidance_scale": 7.5}, r"guidance \(5.0 -> 7.5\)"),
    ({"sample.store_dtype": "bf16"}, r"states \(float32 -> bfloat16\)"),
    ({"mask.maps": "all"}, r"maps \(prompt -> all\)"),
    ({"train.begin_epoch": 2, "train.num_epochs": 3}, "no samples in .*epoch2"),
    (
        {"samples_from": "{data}/a0/epoch0", "train.begin_epoch": 1, "train.num_epochs": 2},
        r"round \(0 -> 1\)",
    ),
    ({"sample.batch_size": 3}, r"images per prompt \(4 -> 6\)"),
    (
        {"prompt_file": "", "prompt": "the dog", "item_idx_file": "", "item_idx": "dog"},
        r"prompts \(2 -> 1\)",
    ),
    ({"item_idx_file": "{data}/../others.json"}, r"prompts and items \(.*the dog: 1 -> the dog: 0"),
    ({"samples_from": "{data}/none"}, "no experiment there; name one such as"),
]
WITH_A_MODEL = [
    ({"mask.layers": "mid"}, r"mask layers \(\[3\] -> \[2\]; item maps of other layers"),
    ({"sample.eta": 0.5}, "sigmas"),
    ({"sample.width": 24}, r"size \(None -> \[16, 24\]\)"),
    ({"mixed_precision": "bf16"}, r"precision \(float32 -> bfloat16\)"),
]


@pytest.mark.parametrize(("flags", "told"), BEFORE_A_MODEL + WITH_A_MODEL, ids=str)
def test_samples_that_are_not_the_same_are_refused_before_anything_is_written(
    lent: Settings, flags: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(lent.save_path)
    items = json.dumps({PROMPTS[0]: ["cat", 3], PROMPTS[1]: [0]})
    (data.parent / "others.json").write_text(items)
    chosen = {"samples_from": "{data}/a0", **flags}
    for name in ("samples_from", "item_idx_file"):
        if name in chosen:
            chosen[name] = chosen[name].format(data=data)
    run = changed(lent, "refused", chosen)
    if flags in [f for f, _ in BEFORE_A_MODEL]:
        monkeypatch.setattr(loading, "_from_folder", None)
    with pytest.raises(UserError, match=told) as caught:
        train_rounds(run)
    assert str(caught.value).startswith("--config.samples_from ")
    left = [p.name for p in (data / run.exp_name).rglob("*")]
    assert not set(left) - {".run.lock"}


def test_an_experiment_takes_nothing_from_itself_or_from_a_round_without_trajectories(
    lent: Settings,
) -> None:
    data = Path(lent.save_path)
    (data / "alias").symlink_to(data / "new")
    shutil.copytree(data / "a0", data / "dropped")
    Experiment(data / "dropped").round(0).drop_states()
    with pytest.raises(UserError, match="no longer has its trajectories"):
        train_rounds(changed(lent, "refused", {"samples_from": str(data / "dropped")}))
    shutil.copytree(data / "a0", data / "new")
    shutil.rmtree(data / "new" / "epoch0")
    with pytest.raises(UserError, match="is the experiment itself"):
        train_rounds(changed(lent, "new", {"samples_from": str(data / "alias")}))


def test_a_trained_round_is_taken_by_a_run_that_begins_at_it(
    lent: Settings, made: set[str]
) -> None:
    a0 = f"{lent.save_path}/a0"
    begins = {
        "samples_from": a0,
        "resume_from": f"{a0}/checkpoints/epoch0",
        "train.begin_epoch": 1,
        "train.num_epochs": 2,
        "train.compare_images": 0,
        "train.beta": 1.0,
    }
    train_rounds(changed(lent, "onwards", begins))
    assert made == set()
    for policy in ("latest", f"{a0}/checkpoints/epoch1"):
        with pytest.raises(UserError, match=r"a0/epoch1 .* weights \(\w+ -> \w+\)"):
            train_rounds(changed(lent, "refused", {**begins, "resume_from": policy}))
    assert not list((Path(lent.save_path) / "refused").glob("*.json"))


def test_later_rounds_are_taken_as_long_as_the_policy_is_the_same(
    lent: Settings, made: set[str]
) -> None:
    two = changed(lent, "two", {"train.num_epochs": 2})
    sample_rounds(two)
    made.clear()
    sample_rounds(changed(two, "both", {"samples_from": f"{lent.save_path}/two"}))
    assert made == set()


def test_killed_while_linking_it_goes_on_or_samples_itself(
    lent: Settings, made: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link
    runs = [of_a0(lent, f"killed{n}") for n in (0, 1)]
    for run in runs:
        calls = iter(range(99))

        def link(*args: Any, calls: Iterator[int] = calls) -> None:
            if next(calls) == 5:
                raise KeyboardInterrupt
            real(*args)

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(KeyboardInterrupt):
            sample_rounds(run)
        monkeypatch.setattr(os, "link", real)
        assert not round_0(run).folder.exists()
    sample_rounds(runs[0])
    assert made == set()
    sample_rounds(replace(runs[1], samples_from=""))
    assert made == {"sample", "make_targets", "score"}
    assert not list(Path(lent.save_path).glob("killed*/.epoch*"))
    a, b = (contents(round_0(run).folder) for run in runs)
    assert difference(a, b) == [] and difference(a, contents(round_0(lent).folder)) == []


def test_files_are_copied_where_the_disk_has_no_links(
    lent: Settings, made: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    run = of_a0(lent, "copied")
    sample_rounds(run)
    assert made == set() and verify(Path(run.save_path) / "copied") == []
    assert round_0(run).trajectory(0).stat().st_nlink == 1
