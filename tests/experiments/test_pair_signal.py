"""Gradients of pairs and what they order, against finite differences and by hand."""

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
from experiments.runs.pair_signal import Sides, lines, orders, pair_gradient, true_pairs
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
    assert orders(pairs, truth, 2, np.random.default_rng(0)) == 0.5
    alone = orders(pairs[:1], truth, 1, np.random.default_rng(0))
    assert alone == 0.25


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


def test_lines_are_means_over_seeds() -> None:
    saved = {
        str(seed): {"kinds": {"naive": {"8": {"self": own, "truth": 0.5, "orders": 0.6}}}}
        for seed, own in ((1, 0.2), (2, 0.4))
    }
    (line,) = lines(saved)
    assert "2 seeds  self 0.30 ± 1.27  truth 0.50 ± 0.00" in line  # t = 12.706, error 0.1
