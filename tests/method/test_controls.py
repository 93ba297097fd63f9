"""Targets without fusion: what they share with their bases, and what they do not."""

import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler

from dfusion.method.fusion import FusionPlan, Source
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import Policy, sample
from dfusion.method.targets import MAKERS, make_targets

MASK_LAYERS = frozenset({3})
KINDS = sorted(set(MAKERS) - {"attention"})


def plan(kind: str, steps: range = range(1, 5)) -> FusionPlan:
    """Of T = 6 steps, the first two are the base's own."""
    return FusionPlan(frozenset(), frozenset(steps), kind=kind)


@pytest.fixture
def sources(policy: Policy, prompts: list[Prompt]) -> list[Source]:
    """Samples 0 … 3: a pair of each prompt."""
    a, b, c, d = sample(policy, range(4), [prompts[0]] * 2 + [prompts[1]] * 2, MASK_LAYERS)
    return [Source(0, prompts[0], a, b), Source(2, prompts[1], c, d)]


def test_a_branch_has_its_bases_states_up_to_the_first_step(
    policy: Policy, sources: list[Source]
) -> None:
    for source, target in zip(sources, make_targets(policy, plan("branch"), sources), strict=True):
        same = [t.equal(b) for t, b in zip(target.latents, source.base.latents, strict=True)]
        assert same == [True, True, True, False, False, False, False]
        assert target.masks.sum((1, 2)).tolist() == [0, 0, 16, 16, 16, 16]


def test_renoise_starts_from_the_noised_image(policy: Policy, sources: list[Source]) -> None:
    """Against diffusers' add_noise; its noise is recovered, and is standard normal."""
    pipe = policy.model.pipe  # type: ignore[attr-defined]
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    timestep = policy.sampler.timesteps[2].long()[None]
    for source, target in zip(sources, make_targets(policy, plan("renoise"), sources), strict=True):
        x0, start = source.base.latents[-1][None], target.latents[2][None]
        bare = scheduler.add_noise(x0, torch.zeros_like(x0), timestep)
        unit = scheduler.add_noise(torch.zeros_like(x0), torch.ones_like(x0), timestep)
        noise = (start - bare) / unit
        assert abs(float(noise.mean())) < 0.2 and abs(float(noise.std()) - 1) < 0.2
        assert torch.allclose(scheduler.add_noise(x0, noise, timestep), start, atol=1e-5)
        assert target.latents[:2].equal(source.base.latents[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_policy_walks_on_with_unrelated_noise(
    policy: Policy, sources: list[Source], kind: str
) -> None:
    """The noise between two states, recovered by diffusers' step, is normal and not the base's."""
    pipe = policy.model.pipe  # type: ignore[attr-defined]
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(6)
    (target, _) = make_targets(policy, plan(kind), sources)
    cond, uncond = pipe.encode_prompt(sources[0].prompt.text, "cpu", 1, True)
    _, drawn = policy.drawn(0)
    found = []
    for i in range(2, 6):
        x, t = target.latents[i][None], scheduler.timesteps[i]
        with torch.no_grad():
            u, c = pipe.unet(torch.cat([x, x]), t, torch.cat([uncond, cond])).sample.chunk(2)
        none = torch.zeros_like(x)
        mean = scheduler.step(u + 5 * (c - u), t, x, eta=1.0, variance_noise=none).prev_sample
        found.append((target.latents[i + 1] - mean[0]) / policy.sampler.std[i])
    z = torch.stack(found)
    assert abs(float(z.mean())) < 0.1 and abs(float(z.std()) - 1) < 0.1
    for other in (drawn[2:], policy.drawn(1)[1][2:]):
        assert abs(float((z * other).mean())) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_depends_on_seed_round_and_index_only(
    policy: Policy, sources: list[Source], kind: str
) -> None:
    together = make_targets(policy, plan(kind), sources)
    for source, target in zip(sources, together, strict=True):
        (alone,) = make_targets(policy, plan(kind), [source])
        assert torch.allclose(alone.latents, target.latents, atol=1e-4)
    for change in ({"seed": 4}, {"round": 1}):
        (other,) = make_targets(dataclasses.replace(policy, **change), plan(kind), sources[:1])  # type: ignore[arg-type]
        assert not torch.allclose(other.latents[-1], together[0].latents[-1], atol=1e-2)
    assert not torch.allclose(together[0].latents[-1], sources[0].base.latents[-1], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_make_the_base(policy: Policy, sources: list[Source], kind: str) -> None:
    (target, _) = make_targets(policy, plan(kind, range(0)), sources)
    assert target.latents.equal(sources[0].base.latents) and not target.masks.any()
