"""Whole rounds of training on the tiny model, under every choice of what and how."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from dfusion.commands.verify import verify
from dfusion.errors import UserError
from dfusion.rounds.session import open_session
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment
from dfusion.training import learner
from dfusion.training.gradients import Updater, transitions
from dfusion.training.order import Step
from dfusion.training.trainer import Trainer, train_rounds
from tests.conftest import metrics_of, small
from tests.losses import TrajectoryDPO


def test_several_updates_compare_with_the_policy_that_sampled(settings: Settings) -> None:
    """Log-probs of theta_old are taken before the first update, of later updates' steps too."""
    chosen = small(settings, 1, "several")
    chosen.train.updates_per_inner_epoch = 2
    trainer = Trainer(open_session(chosen))
    policy = trainer.sampled(0)
    data = trainer.data(0)
    before = transitions(policy, trainer.network, data.read([Step(3, 2)])).log_prob.detach()
    seen = []
    keep = trainer._save_within

    def look(about: dict[str, Any], updater: Updater, rows: list[dict[str, Any]]) -> None:
        seen.append(updater.old)
        keep(about, updater, rows)

    trainer._save_within = look  # type: ignore[method-assign]
    trainer.train_round(0, policy)
    assert len(seen) == 3  # of four updates
    assert all(torch.allclose(old.log_prob[3, 2], before[0], atol=1e-6) for old in seen)
    rows = metrics_of(data.round.folder.parent)
    ratios = [row["ratio"] for row in rows if row["kind"] == "update"]
    assert ratios[0] == 1 and all(ratio != 1 for ratio in ratios[1:])


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_the_sampler_check_looks_at_the_last_step(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    """t = 1 deviates most; a process whose share is a single pair looks at it too."""
    seen: list[Step] = []
    monkeypatch.setattr(learner, "sampling_gap", lambda *args: seen.extend(args[-1]) or 0.0)
    checked = Trainer(open_session(small(settings, 1, "check")))
    share = list(range(5, 5 + pairs))
    checked.check_sampler(checked.session.policy(0), None, share)  # type: ignore[arg-type]
    assert {step.i for step in seen} == {0, 1, 3} and {s.pair for s in seen} <= set(share)


def test_full_fine_tuning(settings: Settings, pipeline_folder: Path) -> None:
    """All weights move; the folder loads as a stock UNet; a resumed run goes on from it."""
    chosen = small(settings, 1, "full")
    chosen.train.tune, chosen.train.learning_rate = "full", 1e-4
    chosen.train.reference = "initial"
    folder = train_rounds(chosen)
    trained = UNet2DConditionModel.from_pretrained(folder / "checkpoints/epoch0", subfolder="unet")
    start = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None).unet
    a, b = dict(trained.named_parameters()), dict(start.named_parameters())
    moved = [name for name in a if not a[name].equal(b[name])]
    assert len(moved) > 0.9 * len(a)
    chosen.train.num_epochs = 2
    trainer = Trainer(open_session(chosen))
    assert trainer.resume() == 1
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = trainer.session.model.encode(["the dog"]).tokens
    with torch.no_grad():
        ours = trainer.session.model.network(x, 501, text).sample
        assert torch.allclose(ours, trained(x, 501, text).sample, atol=1e-6)
        with trainer.tuning.initial() as initial:
            untrained = initial(x, 501, text).sample
            assert torch.allclose(untrained, start(x, 501, text).sample, atol=1e-6)
            assert not torch.allclose(untrained, ours, atol=1e-5)


def test_full_fine_tuning_in_half_precision_is_refused(settings: Settings) -> None:
    chosen = small(settings, 1, "half")
    chosen.train.tune, chosen.mixed_precision = "full", "bf16"
    with pytest.raises(UserError, match="mixed_precision no"):
        train_rounds(chosen)


def test_inversion_trains_on_guessed_trajectories(settings: Settings) -> None:
    """Of adopted targets: they end in the target's image and share nothing with the base."""
    chosen = small(settings, 1, "inverted")
    chosen.train.pairs, chosen.pair.adoption_threshold = "inversion", -10.0
    folder = train_rounds(chosen)
    trainer = Trainer(open_session(chosen))
    data = trainer.data(0)
    assert all(data.fused) and {data.first_step(p) for p in range(4)} == {0}
    for p in range(4):
        guessed = load_file(data.round.inversion(p))["latents"]
        target = load_file(data.round.target(p))["latents"]
        assert guessed[-1].equal(target[-1]) and not guessed[1].equal(target[1])
        batch = data.read([Step(p, 1)])
        assert batch.x[0, 0].equal(guessed[1]) and batch.x_next[0, 0].equal(guessed[2])
    rows = metrics_of(folder)
    assert rows[0]["fusion_shift"] == [None] * 4


def test_a_new_target_is_inverted_anew(settings: Settings) -> None:
    """Targets that are made again, as a changed pairing asks for, take their inversions along."""
    chosen = small(settings, 1, "again")
    chosen.train.pairs, chosen.pair.adoption_threshold = "inversion", -10.0
    folder = train_rounds(chosen)
    round_ = Trainer(open_session(chosen)).session.experiment.round(0)
    round_.target(1).unlink()
    stale = {p: round_.inversion(p).stat().st_mtime_ns for p in (0, 1)}
    shutil.rmtree(folder / "checkpoints")
    train_rounds(chosen)
    fresh = {p: round_.inversion(p).stat().st_mtime_ns for p in (0, 1)}
    # A batch of targets is made whole again.
    assert fresh[1] != stale[1] and verify(folder) == []


def test_one_denoising_step_is_enough(settings: Settings) -> None:
    chosen = small(settings, 1, "single")
    chosen.sample.num_steps, chosen.fusion.steps = 1, "1-1"
    folder = train_rounds(chosen)
    assert (folder / "checkpoints" / "epoch0" / "state.json").exists()


def test_lora_on_other_modules(settings: Settings) -> None:
    chosen = small(settings, 1, "targets")
    chosen.train.lora_targets = "to_v,ff.net.2"
    folder = train_rounds(chosen)
    names = load_file(folder / "checkpoints/epoch0/pytorch_lora_weights.safetensors")
    assert {".".join(n.split(".")[-4:-2]) for n in names} >= {"net.2"}
    assert all(".to_v." in n or ".net.2." in n for n in names)
    chosen = small(settings, 1, "nonsense")
    chosen.train.lora_targets = "to_q,to_x"
    with pytest.raises(UserError, match="'to_x': there is no such layer"):
        train_rounds(chosen)


def test_comparisons_use_the_same_noise(settings: Settings) -> None:
    """Images before training are the base model's; those after differ only through trainer."""
    chosen = small(settings, 2, "compared")
    chosen.train.compare_images, chosen.train.compare_every = 1, 5
    folder = train_rounds(chosen)
    experiment = Trainer(open_session(chosen)).session.experiment
    assert sorted(experiment.comparisons()) == [0, 2]
    before, after = (experiment.comparison(k) for k in (0, 2))
    assert len(before.scores("images")) == len(after.scores("images")) == 2
    a, b = before.manifest()["made_with"], after.manifest()["made_with"]
    assert {k for k in a if a[k] != b[k]} == {"weights"}
    assert before.image("images", 0).read_bytes() != after.image("images", 0).read_bytes()
    assert not (folder / "compare" / "epoch0" / "trajectories").exists()


def test_a_comparison_comes_before_any_training(settings: Settings) -> None:
    """Also where training begins at a round that compare_every passes over."""
    chosen = small(settings, 2, "later")
    chosen.train.begin_epoch, chosen.train.compare_images, chosen.train.compare_every = 1, 1, 10
    folder = train_rounds(chosen)
    assert sorted(Experiment(folder).comparisons()) == [1, 2]


def test_metrics_of_a_round(settings: Settings) -> None:
    folder = train_rounds(small(settings, 1, "metrics"))
    rows = metrics_of(folder)
    update, summary = rows[0], rows[-1]
    assert [row["kind"] for row in rows] == ["update", "update", "round"]
    assert len(update["clip_fraction"]) == len(update["gradient_share"]) == 4
    assert sum(update["gradient_share"]) == pytest.approx(1, abs=1e-5)
    scores = json.loads((folder / "epoch0/eval/images.json").read_text())["scores"]
    mine = torch.tensor([scores[str(i)] for i in range(4)], dtype=torch.float64)
    mean, std = summary["reward_by_prompt"]["a cat the sandwich"]
    assert mean == pytest.approx(float(mine.mean())) and std == pytest.approx(
        float(mine.std(unbiased=False))
    )
    assert (
        summary["adopted"]
        == sum(
            r["adopted"] for r in json.loads((folder / "epoch0/adoption.json").read_text())["pairs"]
        )
        / 4
    )
    masks = [load_file(folder / f"epoch0/targets/{p:05d}.safetensors")["masks"] for p in range(4)]
    expected = torch.stack(masks)[:, 1:].float().mean()
    assert summary["mask_coverage"] == pytest.approx(float(expected))
    assert {"sampling", "fusing", "scoring", "training", "comparing"} <= set(summary["seconds"])
    assert summary["noise_norm"] != 1 and summary["noise_norm"] == pytest.approx(1, abs=0.2)
    card = (folder / "checkpoints/epoch0/README.md").read_text()
    assert f"| 0 | {summary['reward_mean']:.4f} |" in card


def test_eight_bits_without_a_gpu_are_refused(settings: Settings) -> None:
    chosen = small(settings, 1, "bits")
    chosen.train.adam_8bit = True
    with pytest.raises(UserError, match="adam_8bit"):
        train_rounds(chosen)


def test_a_loss_of_ones_own(settings: Settings) -> None:
    """Its fields are filled from the settings of their names; one that is not there is refused."""
    chosen = small(settings, 1, "own")
    chosen.train.method, chosen.train.beta = "tests.losses:TrajectoryDPO", 0.7
    trainer = Trainer(open_session(chosen))
    assert trainer.objective.loss == TrajectoryDPO(beta=0.7)
    trainer.run()
    assert trainer.checkpoints.latest() == 0
    chosen = small(settings, 1, "absent")
    chosen.train.method = "tests.losses:Absent"
    with pytest.raises(UserError, match="train.method 'tests.losses:Absent'.*no attribute"):
        Trainer(open_session(chosen))


def test_the_norm_of_the_predicted_noise_is_over_the_initial_models(settings: Settings) -> None:
    trainer = Trainer(open_session(small(settings, 1, "norm")))
    policy = trainer.session.policy(0)
    trainer.session.runner.run(0, policy)
    data = trainer.data(0)
    assert trainer.noise_norm(policy, data) == 1  # LoRA does nothing yet
    layers = [m for m in trainer.network.modules() if isinstance(m, BaseTunerLayer)]

    def louder(module: torch.nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        return out if all(layer.disable_adapters for layer in layers) else 1.5 * out

    trainer.session.model.network.conv_out.register_forward_hook(louder)
    assert trainer.noise_norm(policy, data) == pytest.approx(1.5, rel=1e-4)
    chosen = small(settings, 1, "full")
    chosen.train.tune = "full"
    assert Trainer(open_session(chosen)).noise_norm(policy, data) is None
