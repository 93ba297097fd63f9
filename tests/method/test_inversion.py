"""DDIM inversion against diffusers' inverse scheduler, and as the inverse of its own sampler."""

import pytest
import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor

from dfusion.method.inversion import invert
from dfusion.method.sampling import Policy
from dfusion.models.diffusion_model import DiffusionModel


def test_inverse_steps_are_those_of_diffusers(policy: Policy) -> None:
    """Apart from diffusers' first step, which starts at another noise level."""
    theirs = DDIMInverseScheduler.from_config(policy.model.pipe.scheduler.config)
    theirs.set_timesteps(len(policy.sampler))
    rng = torch.Generator().manual_seed(1)
    for n, i in enumerate(reversed(range(len(policy.sampler)))):
        x, eps = (torch.randn((2, 4, 8, 8), generator=rng) for _ in range(2))
        expected = theirs.step(eps, theirs.timesteps[n], x).prev_sample
        if n:
            assert torch.allclose(policy.sampler.invert(x, eps, i), expected, atol=1e-5)


def test_inversion_undoes_sampling_without_noise(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly so where the noise predicted does not depend on the state."""
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))

    def constant(
        self: DiffusionModel, x: Tensor, timestep: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, None]:
        return noise * (1 + timestep / 1000), None

    monkeypatch.setattr(DiffusionModel, "predict", constant)
    x0 = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    states = invert(policy, x0, ["the dog", "the cat"])
    assert states.shape == (2, 7, 4, 8, 8)
    assert states[:, -1].equal(x0)
    quiet = policy.model.sampler(6, 1e-6)
    for i, t in enumerate(quiet.timesteps):
        mean, _ = quiet.transition(states[:, i], noise * (1 + t / 1000), i)
        assert torch.allclose(mean, states[:, i + 1], atol=1e-4)


def test_inversion_predicts_from_the_cleaner_state(policy: Policy) -> None:
    """Written out for the first two steps up, with the prompt and without guidance."""
    x0 = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(4))
    states = invert(policy, x0, ["the dog"])
    unet, cond = policy.model.network, policy.model.encode(["the dog"]).tokens
    alphas = policy.model.pipe.scheduler.alphas_cumprod
    times = policy.sampler.timesteps.tolist()
    with torch.no_grad():
        for k in (1, 2):
            low = alphas[times[-k] - 1000 // 6] if times[-k] >= 1000 // 6 else alphas[0]
            high = alphas[times[-k]]
            x = states[:, -k]
            eps = unet(x, times[-k], cond).sample
            clean = (x - (1 - low).sqrt() * eps) / low.sqrt()
            expected = high.sqrt() * clean + (1 - high).sqrt() * eps
            assert torch.allclose(states[:, -k - 1], expected, atol=1e-4)


@pytest.mark.parametrize("store_dtype", [torch.float16, torch.bfloat16])
def test_states_are_rounded_as_stored_ones(policy: Policy, store_dtype: torch.dtype) -> None:
    rounded = Policy(
        policy.model, policy.sampler, policy.guidance, policy.seed, policy.round, store_dtype
    )
    states = invert(rounded, torch.randn(1, 4, 8, 8), ["the dog"])
    assert states.dtype == store_dtype
