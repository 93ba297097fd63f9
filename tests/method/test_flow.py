"""Flow matching as a Markov chain, against diffusers' scheduler and DDIM's noise."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dfusion.method.ddim import ddim
from dfusion.method.flow import flow


def test_without_noise_it_is_diffusers_euler_step() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - n / 10 for n in range(10)])
    sampler = flow(scheduler.sigmas, eta=0.0)
    assert torch.allclose(sampler.timesteps, scheduler.timesteps, atol=1e-3)
    assert not sampler.trainable.any()
    rng = torch.Generator().manual_seed(0)
    for i, t in enumerate(scheduler.timesteps):
        x, v = torch.randn((2, 2, 4, 5, 5), generator=rng)
        theirs = scheduler.step(v, t, x).prev_sample
        ours, std = sampler.transition(x, v, i)
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert (std == 0).all()
        assert torch.allclose(sampler.invert(ours, v, i), x, atol=1e-4)


def test_with_all_noise_new_it_is_diffusers_stochastic_step() -> None:
    """A very large eta draws all of a state's noise anew."""
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[1 - n / 8 for n in range(8)])
    sampler = flow(scheduler.sigmas, eta=1e3)
    x, v = torch.randn((2, 2, 4, 5, 5), generator=torch.Generator().manual_seed(1))
    for i, t in enumerate(scheduler.timesteps):
        torch.manual_seed(i)
        theirs = scheduler.step(v, t, x).prev_sample
        torch.manual_seed(i)
        z = torch.randn_like(x)
        mean, std = sampler.transition(x, v, i)
        assert torch.allclose(mean + std[:, None, None, None] * z, theirs, atol=1e-5)


def test_a_step_keeps_the_amount_of_noise() -> None:
    """mean^2 + std^2 of the noise in the new state is sigma'^2, whatever eta is."""
    sigmas = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    for eta in (0.0, 0.5, 1.5, 2.0):
        sampler = flow(sigmas, eta)
        x0, n = torch.tensor(0.7).double(), torch.tensor(-1.3).double()
        now, then = sigmas[:-1], sigmas[1:]
        x, v = (1 - now) * x0 + now * n, n - x0
        mean = sampler.x_scale.double() * x + sampler.output_scale.double() * v
        kept = (mean - (1 - then) * x0) / n
        assert torch.allclose(
            kept.square() + sampler.std.double().square(), then.square(), atol=1e-6
        )
        assert sampler.std[-1] == 0


def test_eta_one_adds_as_much_noise_as_ddim() -> None:
    """A flow state over (1 - sigma, sigma)'s norm is a variance-preserving state, where DDIM's
    std at eta 1 is eta-free: the same share of the new state's noise."""
    a = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    ratio = ((1 - a) / a).sqrt()  # sigma / (1 - sigma)
    sigmas = torch.cat([ratio / (1 + ratio), torch.zeros(1, dtype=torch.float64)])
    sampler = flow(sigmas, 1.0)
    # DDIM steps through the same noise levels; timestep n is the n-th least noisy.
    alphas = a.flip(0)
    theirs = ddim(alphas, torch.arange(4, -1, -1), 1.0, eta=1.0)
    share = theirs.std[:-1].double() / (1 - a[1:]).sqrt()
    assert torch.allclose(sampler.std[:-1].double() / sigmas[1:-1], share, atol=1e-6)


@pytest.mark.parametrize("eta", [0.7, 1.5])
def test_its_tables_are_finite_from_pure_noise_on(eta: float) -> None:
    sampler = flow(torch.linspace(1, 0, 11), eta)
    assert sampler.std[0] == pytest.approx(0.9)  # x_T is forgotten
    for table in (sampler.x_scale, sampler.output_scale, sampler.std):
        assert table.isfinite().all()
    assert sampler.trainable.tolist() == [True] * 9 + [False]
