"""Numbers gone wrong, and degenerate rounds: a clear stop or a defined outcome, said once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dfusion.errors import UserError
from dfusion.method.sampling import Policy
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.rewards.registry import REWARDS
from dfusion.rounds.degenerate import equal_scores, odd_masks
from dfusion.rounds.session import sample_rounds
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment
from dfusion.training import gradients
from dfusion.training.gradients import Transitions
from dfusion.training.trainer import train_rounds
from tests.conftest import small


@pytest.fixture
def flat_reward(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image scores the same."""
    monkeypatch.setitem(REWARDS, "flat", lambda s, device: lambda images, p: [0.5] * len(images))
    settings.eval.reward = "flat"


def spoil(model_step: int, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network gives NaN for one row of the batch at one of its calls, counted from 0."""
    real, calls = DiffusionModel.predict, iter(range(10**6))

    def predict(self: DiffusionModel, *args: object, **kwargs: object) -> tuple:
        eps, maps = real(self, *args, **kwargs)  # type: ignore[arg-type]
        if next(calls) == model_step:
            eps = eps.clone()
            eps[row] = torch.nan
        return eps, maps

    monkeypatch.setattr(DiffusionModel, "predict", predict)


def test_a_bad_state_names_round_sample_and_step(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(4 + 1, 1, monkeypatch)  # the second batch's second step, t = 3
    with pytest.raises(UserError, match="round 0, sample 3: NaN or Inf after step t = 3"):
        sample_rounds(settings)
    folder = Path(settings.save_path) / "exp" / "epoch0"
    assert sorted(p.name for p in (folder / "images").iterdir()) == ["00000.png", "00001.png"]
    monkeypatch.undo()
    sample_rounds(settings)  # goes on


def test_a_bad_target_names_its_pair(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(4 * 4 + 2, 3, monkeypatch)  # after four batches of samples: the first targets, t = 1
    with pytest.raises(UserError, match="round 0, target 1: NaN or Inf after step t = 1"):
        sample_rounds(settings)


def test_bad_item_maps_and_bad_pictures_are_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DiffusionModel.predict

    def predict(self: DiffusionModel, *args: object, **kwargs: object) -> tuple:
        eps, maps = real(self, *args, **kwargs)  # type: ignore[arg-type]
        return eps, maps * torch.inf if maps is not None else None

    monkeypatch.setattr(DiffusionModel, "predict", predict)
    with pytest.raises(UserError, match="round 0, sample 0: NaN or Inf in its item maps"):
        sample_rounds(settings)
    monkeypatch.undo()
    noise = Policy.rounded
    monkeypatch.setattr(Policy, "rounded", lambda self, x: noise(self, x) * 1e30)
    with pytest.raises(UserError, match="round 0, sample 0: NaN or Inf"):
        sample_rounds(settings)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None, "high", [1.0, 2.0]])
def test_a_reward_without_a_number_names_the_image(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, bad: object
) -> None:
    calls = iter(range(10**6))
    reward = lambda images, p: [bad if next(calls) == 5 else 0.1 for _ in images]  # noqa: E731
    monkeypatch.setitem(REWARDS, "bad", lambda s, device: reward)
    settings.eval.reward, settings.eval.batch_size = "bad", 1
    with pytest.raises(UserError, match=r"00005.png: the reward|gave no numbers|gave \d scores"):
        sample_rounds(settings)
    scores = Experiment(Path(settings.save_path) / "exp").round(0).scores("images")
    assert set(scores) <= set(range(5))  # what was scored stays


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_update_names_pair_and_step_and_leaves_the_checkpoint(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    chosen = small(settings, 1, "spoilt")
    folder = train_rounds(chosen)
    before = {p: p.read_bytes() for p in folder.glob("checkpoints/epoch0/*")}
    chosen.train.num_epochs, chosen.train.batch_size = 2, 1
    real, seen = gradients.transitions, []

    def transitions(
        policy: Policy, network: torch.nn.Module, batch: gradients.Batch
    ) -> Transitions:
        found = real(policy, network, batch)
        if torch.is_grad_enabled():
            seen.append(int(batch.i))
            if len(seen) == 3:
                return poisoned(found, what)
        return found

    monkeypatch.setattr(gradients, "transitions", transitions)
    with pytest.raises(UserError, match=f"NaN or Inf in the {what}") as caught:
        train_rounds(chosen)
    t = 4 - seen[2]
    assert "round 1, training, inner epoch 0, pair " in str(caught.value)
    assert f"step t = {t}:" in str(caught.value)
    assert "checkpoint epoch0 is intact" in str(caught.value)
    assert before == {p: p.read_bytes() for p in before}
    monkeypatch.undo()
    train_rounds(chosen)  # goes on


def poisoned(found: Transitions, what: str) -> Transitions:
    """The same transitions with a NaN in the loss, or in nothing but the gradient."""
    factor = torch.nan if what == "loss" else 1.0
    log_prob = found.log_prob * factor
    if what == "gradient":
        log_prob.register_hook(lambda gradient: gradient * torch.nan)
    return Transitions(log_prob, found.mean, found.output)


def test_equal_scores_are_paired_by_index_and_said_once(
    settings: Settings, flat_reward: None, capsys: pytest.CaptureFixture
) -> None:
    folder = sample_rounds(settings)
    said = capsys.readouterr().out
    assert said.count("2 of 2 prompts have only equal scores: paired by index") == 1
    pairs = Experiment(folder).round(0).pairs() or ()
    assert [(p.reference, p.base) for p in pairs] == [(0, 2), (1, 3), (4, 6), (5, 7)]
    rows = Experiment(folder).round(0).adoption() or []
    assert all(row["adopted"] for row in rows)  # not worse than its base


def test_nothing_to_learn_stops(settings: Settings, flat_reward: None) -> None:
    chosen = small(settings, 1, "flat")
    chosen.train.method = "ddpo"
    with pytest.raises(UserError, match="norm is 0; no pair has anything to teach"):
        train_rounds(chosen)
    assert not (Path(chosen.save_path) / "flat" / "checkpoints" / "epoch0").exists()


@pytest.mark.parametrize(
    ("threshold", "words"),
    [("1", "4 of 4 masks are empty: these targets are their bases"), ("0", None)],
)
def test_empty_and_full_masks(
    settings: Settings, capsys: pytest.CaptureFixture, threshold: str, words: str | None
) -> None:
    settings.mask_thr, settings.mask.merge = threshold, "or"
    folder = sample_rounds(settings)
    said = capsys.readouterr().out
    assert said.count(words or "4 of 4 masks cover everything") == 1
    round_ = Experiment(folder).round(0)
    for p, pair in enumerate(round_.pairs() or ()):
        same = (
            round_.image("target_images", p).read_bytes()
            == round_.image("images", pair.base).read_bytes()
        )
        assert same == (threshold == "1")
    rows = round_.adoption() or []
    if threshold == "1":
        assert not any(row["adopted"] for row in rows)  # the reference stands in


def test_words() -> None:
    assert equal_scores({"a": [1.0, 1.0], "b": [1.0, 2.0]}).startswith("1 of 2 prompts")
    assert equal_scores({"a": [1.0, 2.0]}) == equal_scores({}) == ""
    on, off = torch.ones(3, 2, 2, dtype=torch.bool), torch.zeros(3, 2, 2, dtype=torch.bool)
    mixed: Tensor = on.clone()
    mixed[0, 0, 0] = False
    assert odd_masks([on, off, mixed]) == (
        "1 of 3 masks are empty: these targets are their bases; 1 of 3 masks cover everything"
    )
    assert odd_masks([mixed, on[:0]]) == ""


def test_an_item_beyond_the_text_encoder_is_refused(settings: Settings) -> None:
    settings.prompt_file, settings.item_idx_file = "", ""
    settings.prompt, settings.item_idx = "a " * 20 + "dog", "dog"
    with pytest.raises(UserError, match="--config.item_idx dog: item 'dog'.*lies beyond the 16"):
        sample_rounds(settings)
    assert not (Path(settings.save_path) / "exp" / "config.json").exists()
