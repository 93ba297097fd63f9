"""DDIM against diffusers' scheduler step and torch.distributions, for every accepted setting."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler

from dfusion.method.ddim import ddim
from dfusion.method.sampler import Sampler

SD = {"beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False}
SETTINGS = [
    {**SD, "prediction_type": "v_prediction"},
    {**SD, "prediction_type": "sample"},
    # No signal at all in x_T, as in models with zero terminal SNR.
    {
        **SD,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
] + [
    {
        "beta_schedule": schedule,
        "timestep_spacing": spacing,
        "steps_offset": offset,
        "set_alpha_to_one": to_one,
    }
    for schedule, spacing, offset, to_one in itertools.product(
        ("scaled_linear", "linear", "squaredcos_cap_v2"),
        ("leading", "trailing", "linspace"),
        (0, 1),
        (True, False),
    )
]


def make(steps: int, eta: float, **settings: object) -> tuple[Sampler, DDIMScheduler]:
    scheduler = DDIMScheduler(clip_sample=False, **settings)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # 1 - a_t cancels at t = 1
    scheduler.set_timesteps(steps)
    final = float(scheduler.final_alpha_cumprod)
    prediction = str(settings.get("prediction_type", "epsilon"))
    sampler = ddim(scheduler.alphas_cumprod, scheduler.timesteps, final, eta, prediction)
    return sampler, scheduler


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize(("steps", "eta"), [(20, 1.0), (7, 0.6)])
def test_step_equals_diffusers(settings: dict, steps: int, eta: float) -> None:
    if "rescale_betas_zero_snr" in settings:
        eta = 0.6  # at 1, diffusers takes the root of a rounding error below 0
    sampler, scheduler = make(steps, eta, **settings)
    rng = torch.Generator().manual_seed(0)
    for i, t in enumerate(scheduler.timesteps):
        x, eps, z = torch.randn((3, 2, 4, 5, 5), generator=rng)
        theirs = scheduler.step(eps, t, x, eta=eta, variance_noise=z).prev_sample
        mean, std = sampler.transition(x, eps, i)
        ours = mean + std[:, None, None, None] * z
        scale = theirs.abs().max()
        assert torch.allclose(ours / scale, theirs / scale, atol=2e-5), f"step {i}"
        # The mean alone is the step without noise; the std is what the noise is multiplied by.
        still = scheduler.step(eps, t, x, eta=eta, variance_noise=torch.zeros_like(z)).prev_sample
        assert torch.allclose(mean / scale, still / scale, atol=2e-5)


def test_log_prob_equals_torch_distributions() -> None:
    sampler, _ = make(20, 1.0, **SD)
    rng = torch.Generator().manual_seed(1)
    x, eps, y = torch.randn((3, 20, 4, 6, 6), generator=rng)
    mean, std = sampler.transition(x, eps, torch.arange(20))  # a different step in every row
    expected = torch.distributions.Normal(mean, std[:, None, None, None]).log_prob(y)
    assert torch.allclose(sampler.log_prob(y, mean, std), expected.mean((1, 2, 3)), rtol=1e-5)


def test_kl_equals_torch_distributions() -> None:
    p, q = torch.randn(2, 5, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    std = torch.rand(5) + 0.1
    wide = std[:, None, None, None].expand_as(p)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(p, wide), torch.distributions.Normal(q, wide)
    )
    assert torch.allclose(Sampler.kl(p, q, std), expected.mean((1, 2, 3)), rtol=1e-5)


def test_sd21_constants() -> None:
    """Figures of the paper's sampler: 20 steps, timesteps 951 … 1, sigma(t=1) = 0.0206."""
    sampler, _ = make(
        20,
        1.0,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
    )
    assert sampler.timesteps.tolist() == list(range(951, 0, -50))
    assert sampler.std[-1].item() == pytest.approx(0.0206, abs=1e-4)
    # Weight of the squared change of eps in the log-prob, c^2 / 2 std^2: 14.75 at 51 -> 1.
    weight = sampler.output_scale**2 / (2 * sampler.std**2)
    assert weight[-2].item() == pytest.approx(14.75, abs=0.01)
    assert weight[-2] / weight.sum() == pytest.approx(0.73, abs=0.01)


def test_steps_without_noise_are_known() -> None:
    sampler, _ = make(20, 1.0, **{**SD, "steps_offset": 0})
    assert sampler.trainable.tolist() == [True] * 19 + [False]
    still, _ = make(20, 0.0, **SD)
    assert not still.trainable.any()
    with pytest.raises(ValueError, match="more variance"):
        make(20, 30.0, **SD)
