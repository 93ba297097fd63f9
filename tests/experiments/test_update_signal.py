"""Signal and noise of updates: against distributions whose answers are known."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dfusion.method.pairing import Pair
from dfusion.method.sampling import Policy
from dfusion.models.stable_diffusion import StableDiffusion
from dfusion.models.trainable import tune
from dfusion.settings.schema import Train
from experiments.runs.update_signal import (
    Kind,
    advantages,
    expected_cosine,
    policy_gradient,
    score_vector,
    signal_and_noise,
)
from tests.conftest import make_pipeline


def rows(count: int, mean: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Independent N(mean, I)."""
    return mean + torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed))


def test_signal_and_noise_are_unbiased() -> None:
    mean = torch.zeros(50)
    mean[0] = 0.5
    found = np.mean([signal_and_noise(rows(40, mean, seed)) for seed in range(400)], axis=0)
    assert found[0] == pytest.approx(0.25, abs=0.03)
    assert found[1] == pytest.approx(50, rel=0.01)


def test_expected_cosine_is_that_of_fresh_updates() -> None:
    mean = torch.zeros(50)
    mean[0] = 1.0
    cosines = []
    for seed in range(300):
        update = rows(20, mean, 1000 + seed).mean(0)
        cosines.append(float(update @ mean / update.norm()))
    assert expected_cosine(rows(5000, mean), 20) == pytest.approx(np.mean(cosines), abs=0.02)
    assert expected_cosine(rows(40, 0 * mean) - rows(40, 0 * mean).mean(0), 20) == 0


def test_policy_gradient_is_the_derivative_of_what_is_right() -> None:
    """x ~ N(theta, 1), right where x > 0: d P(right) / d theta is the density at 0."""
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) + 0.3
    groups = ["a", "b"] * 100_000
    found = policy_gradient((x - 0.3)[:, None], x > 0, groups).mean()
    assert float(found) == pytest.approx(
        math.exp(-(0.3**2) / 2) / math.sqrt(2 * math.pi), abs=0.005
    )


def test_gain_and_accuracy_of_pairs_that_agree_and_of_pairs_that_do_not() -> None:
    mean = torch.zeros(30)
    mean[0] = 2.0
    rng = np.random.default_rng(0)
    truth = rows(4000, mean, 1)
    good, noise = Kind(rows(200, mean), truth), Kind(rows(200, 0 * mean), truth)
    assert np.mean([*good.gains(64, rng)]) == pytest.approx(
        expected_cosine(good.pairs, 64), abs=0.03
    )
    assert abs(np.mean([*noise.gains(64, rng)])) < 0.3
    assert np.mean([*good.accuracies(64, rng)]) > 0.95
    assert np.mean([*noise.accuracies(64, rng)]) == pytest.approx(0.5, abs=0.06)


def test_advantages_by_hand() -> None:
    """Targets are normalised by the plain samples of their prompt: mean 2 and deviation 1 of a."""
    round_ = SimpleNamespace(
        pairs=lambda: (
            Pair(prompt="a", base=0, reference=1),
            Pair(prompt="b", base=2, reference=3),
        ),
        scores_by_text=lambda: {"a": [1.0, 3.0], "b": [0.0, 1.0]},
    )
    rows = [
        {"base": 1.0, "reference": 3.0, "target": 5.0},
        {"base": 0.0, "reference": 1.0, "target": 0.25},
    ]
    found = advantages(round_, rows)  # type: ignore[arg-type]
    for side, expected in {"base": [-1, -1], "reference": [1, 1], "target": [3, -0.5]}.items():
        assert found[side].tolist() == pytest.approx(expected, abs=1e-4)


def test_score_vector_is_the_slope_of_the_log_prob(tmp_path: Path) -> None:
    """Against a finite difference along a random direction of the LoRA weights."""
    model = StableDiffusion(make_pipeline(tmp_path), "cpu", torch.float32)
    policy = Policy(model, model.sampler(6, 1.0), 5.0, seed=3, round=0)
    parameters = tune(model, Train(), seed=1, keep_initial=False).parameters
    torch.manual_seed(0)
    latents, steps = torch.randn(7, *model.latent_shape), torch.tensor([0, 2, 4])
    directions = [torch.randn_like(p) for p in parameters]
    for p, d in zip(parameters, directions, strict=True):
        p.data += 0.05 * d  # away from zero, where one factor has no gradient

    def log_prob(shift: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.data += shift * d
        found = 0.0
        for i in steps.tolist():
            cond = model.encode(["a cat"])
            with torch.no_grad():
                eps, _ = policy.predict(latents[i : i + 1], i, cond)
            mean, std = policy.sampler.transition(latents[i : i + 1], eps, i)
            found += float(
                torch.distributions.Normal(mean, std.view(-1, 1, 1, 1))
                .log_prob(latents[i + 1 : i + 2])
                .double()
                .mean()
            )
        return found

    slope = score_vector(policy, "a cat", latents, steps, parameters)
    expected = float(slope @ torch.cat([d.flatten() for d in directions]))
    step = 2e-3
    up, down = log_prob(step), log_prob(-2 * step)
    assert (up - down) / (2 * step) == pytest.approx(expected, rel=0.02)
