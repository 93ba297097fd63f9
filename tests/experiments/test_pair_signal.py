"""Gradients of pairs and what they order, against finite differences and by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dfusion.method.sampling import Policy
from dfusion.models.stable_diffusion import StableDiffusion
from dfusion.models.trainable import tune
from dfusion.settings.schema import Train
from dfusion.storage.experiment import Round
from experiments.runs import pair_signal
from experiments.runs.pair_signal import (
    Rows,
    Sides,
    figures,
    orders,
    pair_gradient,
    spread,
    true_pairs,
    truth_cosine,
)
from tests.conftest import make_pipeline


def test_pair_gradient_is_the_slope_of_diffusers_own_errors(tmp_path: Path) -> None:
    """The error of the stock UNet on latents that the stock scheduler noised, the same noise for
    both images: against a finite difference along a random direction of the LoRA weights."""
    pipe = make_pipeline(tmp_path)
    model = StableDiffusion(pipe, "cpu", torch.float32)
    policy = Policy(model, model.sampler(6, 1.0), 5.0, seed=3, round=0)
    parameters = tune(model, Train(), seed=1, keep_initial=False).parameters
    torch.manual_seed(0)
    directions = [torch.randn_like(p) for p in parameters]
    for p, d in zip(parameters, directions, strict=True):
        p.data += 0.05 * d  # away from zero, where one factor has no gradient
    ends, steps = torch.randn(2, *model.latent_shape), torch.tensor([0, 2, 4])
    sides = Sides("a cat", ends[0], ends[1], 7)
    text = model.encode(["a cat"]).tokens

    def difference(shift: float) -> float:
        for p, d in zip(parameters, directions, strict=True):
            p.data += shift * d
        found = 0.0
        for i in steps.tolist():
            rng = pair_signal.generator(3, 0, 7, i, pair_signal.FORWARD)
            noise = torch.randn(model.latent_shape, generator=rng)[None]
            for end, sign in zip(ends, (1, -1), strict=True):
                t = policy.sampler.timesteps[i]
                x = pipe.scheduler.add_noise(end[None], noise, t[None])
                with torch.no_grad():
                    output = model.network(x, t, text).sample
                found -= sign * float((output - noise).double().square().mean())
        return found

    slope = pair_gradient(policy, sides, steps, parameters)
    expected = float(slope @ torch.cat([d.flatten() for d in directions]))
    step = 2e-3
    up, down = difference(step), difference(-2 * step)
    assert (up - down) / (2 * step) == pytest.approx(expected, rel=0.02)
    alike = pair_gradient(policy, Sides("a cat", ends[0], ends[0], 7), steps, parameters)
    assert alike.abs().max() < 1e-6 < slope.abs().max()


def test_orders_by_hand() -> None:
    """An update of both pairs is (1, 1): it orders the first and third true pair rightly."""
    pairs = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    truth = torch.tensor([[1.0, 0.0], [-2.0, 1.0], [-1.0, 2.0], [-1.0, -1.0]])
    assert orders(pairs, truth, 2) == 0.5
    assert orders(pairs[:1], truth, 1) == 0.25


def test_truth_cosine_is_that_of_fresh_updates_with_the_true_direction() -> None:
    torch.manual_seed(0)
    own, true = torch.zeros(50), torch.zeros(50)
    own[0], own[1], true[0] = 0.6, 0.8, 1.0  # unit vectors with a cosine of 0.6
    updates = own + torch.randn(2000, 20, 50)
    expected = float(torch.nn.functional.cosine_similarity(updates.mean(1), true[None]).mean())
    found = truth_cosine(own + torch.randn(20_000, 50), true + torch.randn(20_000, 50), 20)
    assert found == pytest.approx(expected, abs=0.02)
    assert math.isnan(truth_cosine(updates[0], torch.tensor([[1.0], [-1.0]]) * torch.ones(50), 8))


def test_spread_is_the_jackknife() -> None:
    """Of a mean, the jackknife's error is the mean's own."""
    x = np.array([1.0, 2.0, 4.0, 9.0])
    values = np.array([x.mean(), *(np.delete(x, i).mean() for i in range(4))])
    assert spread(values) == pytest.approx((4.0, 1.96 * x.std(ddof=1) / 2), abs=1e-4)


def test_leads_are_over_naive_pairs() -> None:
    torch.manual_seed(0)
    texts = [t for t in "abcd" for _ in range(50)]
    true = torch.zeros(20)
    true[0] = 1.0
    kinds = {
        "naive": Rows(0.5 * true + torch.randn(200, 20), texts),
        "better": Rows(2.0 * true + torch.randn(200, 20), texts),
    }
    found = figures(kinds, Rows(true + torch.randn(200, 20), texts))
    row = found["better"]["8"]
    assert row["lead, truth"][0] == pytest.approx(
        row["truth"][0] - found["naive"]["8"]["truth"][0], abs=1e-3
    )
    assert row["lead, truth"][0] > row["lead, truth"][1] > 0
    assert found["naive"]["8"]["lead, orders"] == (0.0, 0.0)


def test_updates_have_no_more_pairs_than_there_are() -> None:
    """Of 20 pairs of two prompts, 10 are left without either: too few for updates of 16."""
    torch.manual_seed(0)
    few = Rows(torch.randn(20, 5), [*("a" * 10), *("b" * 10)])
    assert [*figures({"naive": few}, few)["naive"]] == ["8"]


def test_true_pairs_are_of_one_prompt_and_use_an_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a", "a", "a", "b", "b", "b", "c"]
    right = torch.tensor([True, False, False, False, True, True, True])
    monkeypatch.setattr(pair_signal, "judged", lambda *_: right)
    monkeypatch.setattr(pair_signal, "_end", lambda path: torch.tensor(float(path.stem)))
    found = true_pairs(Round(tmp_path), prompts, None)  # type: ignore[arg-type]
    assert [(s.text, s.preferred.item(), s.base.item()) for s in found] == [
        ("a", 0, 1),
        ("b", 4, 3),
    ]
    assert [s.number for s in found] == [0, 1]
