"""Optimiser steps that go wrong or have nothing to do: repeated, cut smaller, or skipped."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfusion.errors import UserError
from dfusion.rounds.session import open_session, sample_rounds
from dfusion.settings.schema import Settings
from dfusion.training import gradients, pairs
from dfusion.training.loss_scale import LOWEST, LossScale
from dfusion.training.pairs import TrainingRound
from dfusion.training.trainer import Trainer
from tests.conftest import make_settings, metrics_of, small


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Settings:
    """A round that is ready to be trained on."""
    settings = small(make_settings(tmp_path_factory.mktemp("sampled"), pipeline_folder), 1, "exp")
    sample_rounds(settings)
    return settings


@pytest.fixture
def trainer_of(sampled: Settings, tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a trainer before the round, in a folder of its own; with settings of training."""
    count = iter(range(99))

    def make(**train: Any) -> Trainer:
        folder = tmp_path / str(next(count))
        shutil.copytree(sampled.save_path, folder)
        settings = dataclasses.replace(sampled, save_path=str(folder))
        settings.train = dataclasses.replace(sampled.train, **train)
        return Trainer(open_session(settings))

    return make


def trained(trainer: Trainer) -> list[Tensor]:
    """The weights after the round."""
    trainer.train_round(0, trainer.session.policy(0))
    return [p.detach().clone() for p in trainer.tuning.parameters]


def rows_of(trainer: Trainer) -> list[dict[str, Any]]:
    return metrics_of(trainer.session.experiment.folder)


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def test_a_fraction_of_the_steps_has_the_gradient_of_all_on_average(
    trainer_of: Callable[..., Trainer],
) -> None:
    """Over many draws, at theta_old and without clipping."""
    whole, half = (
        trainer_of(learning_rate=1e-30, max_grad_norm=1e9, timestep_fraction=fraction)
        for fraction in (1.0, 0.5)
    )
    gradients = []
    for trainer, passes in ((whole, 1), (half, 60)):
        data, drawn = trainer.data(0), []
        for inner in range(passes):
            updater = trainer.updater(trainer.session.policy(0), data)
            (update,) = trainer.order(0, inner, data, trainer.session.sampler)
            trainer.stepper.step(updater, update)
            known = [p.grad for p in trainer.tuning.parameters if p.grad is not None]
            drawn.append(torch.cat([g.flatten() for g in known]))
        gradients.append(torch.stack(drawn))
    expected, found = gradients[0][0], gradients[1]
    error = (found.mean(0) - expected).norm() / expected.norm()
    spread = (found - expected).norm(dim=1).mean() / expected.norm()
    assert spread > 0.2  # one draw is far off
    assert error < 2 * spread / 60**0.5


def test_a_step_without_gradient_is_skipped_and_counted(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt whose images score the same leaves DDPO nothing in that step, others go on."""
    monkeypatch.setattr(
        TrainingRound, "advantages", lambda self, p: [0.0, 0.0] if p == 2 else [1.0, -1.0]
    )
    trainer = trainer_of(method="ddpo", updates_per_inner_epoch=4)
    trained(trainer)
    *steps, summary = rows_of(trainer)
    assert [row["grad_norm"] == 0 for row in steps] == [row["skipped"] for row in steps]
    assert sum(row["skipped"] for row in steps) == summary["skipped_updates"] == 2
    assert {int(s["step"]) for s in trainer.optimiser.state.values()} == {len(steps) - 2}


def overflowing(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, above: float) -> None:
    """Gradients are infinite where the loss scale is above `above`; the losses stay finite."""
    real = gradients.transitions

    def transitions_(*args: Any) -> gradients.Transitions:
        found = real(*args)
        if found.log_prob.requires_grad:
            factor = torch.inf if trainer.loss_scale > above else 1.0
            found.log_prob.register_hook(lambda gradient: gradient * factor)
        return found

    monkeypatch.setattr(gradients, "transitions", transitions_)


def test_an_overflow_of_float16_is_repeated_with_a_lower_scale(
    trainer_of: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Here in float32, in which powers of two change no bit."""
    undisturbed = trained(trainer_of())
    trainer = trainer_of()
    trainer.stepper.scale = LossScale(torch.float16)
    overflowing(monkeypatch, trainer, above=256)
    assert equal(trained(trainer), undisturbed)
    said = capsys.readouterr().out
    assert said.count("overflowed float16; again with loss scale") == 2  # 512, 256; kept since
    assert [row.get("loss_scale") for row in rows_of(trainer)] == [256, 256, None]
    again = Trainer(open_session(trainer.settings))
    again.stepper.scale = LossScale(torch.float16)
    again.resume()
    assert again.loss_scale == 256


def test_a_gradient_that_no_scale_mends_stops(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of()
    trainer.stepper.scale = LossScale(torch.float16)
    trainer.stepper.scale.value = 2 * LOWEST
    overflowing(monkeypatch, trainer, above=0)
    with pytest.raises(UserError, match="step t = .: NaN or Inf in the gradient"):
        trained(trainer)


def test_a_step_that_does_not_fit_is_begun_anew_with_smaller_batches(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second micro-batch, when a part of the gradient is there already."""
    small_ones = trained(trainer_of(batch_size=2, method="dpok"))
    trainer = trainer_of(batch_size=8, method="dpok")
    real, calls = gradients.transitions, iter(range(9**9))

    def transitions_(policy: Any, network: Any, batch: gradients.Batch) -> gradients.Transitions:
        if len(batch.i) > 2 and torch.is_grad_enabled() and next(calls) % 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(policy, network, batch)

    monkeypatch.setattr(gradients, "transitions", transitions_)
    assert equal(trained(trainer), small_ones)
    assert trainer.fit.size == 2


def test_states_are_read_once(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And single steps from the files where they are too many to keep: the same update."""
    plain, kept, unkept = trainer_of(), trainer_of(), trainer_of()
    wanted = trained(plain)
    opened: list[object] = []
    real = pairs.read_rows
    monkeypatch.setattr(pairs, "read_rows", lambda *args: opened.append(args[0]) or real(*args))
    assert equal(trained(kept), wanted) and not opened
    monkeypatch.setattr(pairs, "KEPT_BYTES", 10_000)
    assert equal(trained(unkept), wanted) and opened
