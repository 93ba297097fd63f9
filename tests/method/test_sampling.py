"""Sampling and fusion on the tiny model: identities to the bit, and order independence."""

import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from dfusion.errors import UserError
from dfusion.method.fusion import FusionPlan, Source, fuse
from dfusion.method.noise import generator, noises
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import Policy, Trajectory, sample
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.settings.steps import parse_steps
from tests.conftest import SCHEDULE

MASK_LAYERS = frozenset({3})
PLAN = FusionPlan(layers=frozenset({2, 3, 4}), steps=frozenset({4, 3, 2, 1}))  # T = 6


@pytest.fixture
def trajectories(policy: Policy, prompts: list[Prompt]) -> list[Trajectory]:
    """Samples 0 … 3: two of each prompt."""
    return sample(policy, range(4), [prompts[0]] * 2 + [prompts[1]] * 2, MASK_LAYERS)


def sources(trajectories: list[Trajectory], prompts: list[Prompt]) -> list[Source]:
    """Pair of prompt 0: base 0, reference 1; pair of prompt 1: base 2, reference 3."""
    return [
        Source(0, prompts[0], trajectories[0], trajectories[1]),
        Source(2, prompts[1], trajectories[2], trajectories[3]),
    ]


def test_sample_equals_stock_pipeline_loop(
    policy: Policy, model: DiffusionModel, prompts: list[Prompt], trajectories: list[Trajectory]
) -> None:
    """The whole trajectory against diffusers' own pipeline pieces: encode, UNet, guidance, step."""
    pipe = model.pipe
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(6)
    cond, uncond = pipe.encode_prompt(prompts[1].text, "cpu", 1, True)
    x, z = noises(3, 0, 2, 6, (4, 8, 8))
    x, z = x[None], z[:, None]
    for i, t in enumerate(scheduler.timesteps):
        assert torch.allclose(trajectories[2].latents[i], x[0], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            u, c = pipe.unet(torch.cat([x, x]), t, torch.cat([uncond, cond])).sample.chunk(2)
        x = scheduler.step(u + 5 * (c - u), t, x, eta=1.0, variance_noise=z[i]).prev_sample
    assert torch.allclose(trajectories[2].latents[6], x[0], rtol=1e-4, atol=1e-4)


def test_decode_equals_stock_image_processor(model: DiffusionModel) -> None:
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = model.pipe.vae.decode(x0 / model.pipe.vae.config.scaling_factor).sample
    expected = model.pipe.image_processor.postprocess(image, "np")
    assert model.decode(x0).equal(torch.from_numpy((expected * 255).round()).byte())


def test_batch_size_and_order_do_not_matter(
    policy: Policy, prompts: list[Prompt], trajectories: list[Trajectory]
) -> None:
    (alone,) = sample(policy, [2], [prompts[1]], MASK_LAYERS)
    swapped = sample(policy, [2, 1], [prompts[1], prompts[0]], MASK_LAYERS)
    for got, index in ((alone, 2), (swapped[0], 2), (swapped[1], 1)):
        assert torch.allclose(got.latents, trajectories[index].latents, atol=1e-4)  # up to 30
        assert torch.allclose(got.maps.float(), trajectories[index].maps.float(), atol=1e-3)


def test_maps_of_a_sample_have_its_items_and_steps(trajectories: list[Trajectory]) -> None:
    assert trajectories[0].maps.shape == (6, 2, 4, 4)
    assert trajectories[2].maps.shape == (6, 1, 4, 4)
    assert trajectories[0].maps.std() > 0


def test_every_triple_has_its_own_noise() -> None:
    triples = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (0, 1, 1)]
    first = [torch.rand(1, generator=generator(*triple)).item() for triple in triples]
    assert len(set(first)) == len(triples)
    x, z = noises(1, 2, 3, 500, (4, 8, 8))
    assert x.equal(noises(1, 2, 3, 500, (4, 8, 8))[0])
    assert z.mean().abs() < 0.01
    assert (z.std() - 1).abs() < 0.01


def test_reference_equal_to_base_gives_the_base_to_the_bit(
    policy: Policy, prompts: list[Prompt]
) -> None:
    # At equal batch shape: the pair's call has 4 rows, so the base is sampled beside another.
    pair = sample(policy, [0, 0], [prompts[0]] * 2, MASK_LAYERS)
    plan = dataclasses.replace(PLAN, masked=False, steps=frozenset(range(1, 7)))
    (target,) = fuse(policy, plan, [Source(0, prompts[0], pair[0], pair[0])])
    assert target.latents.equal(pair[0].latents)


def test_empty_mask_gives_the_base_to_the_bit(policy: Policy, prompts: list[Prompt]) -> None:
    pair = sample(policy, [0, 1], [prompts[0]] * 2, MASK_LAYERS)
    unreached = tuple(dataclasses.replace(item, threshold=9.0) for item in prompts[0].items)
    never = Prompt(prompts[0].text, unreached)
    (target,) = fuse(policy, PLAN, [Source(0, never, pair[0], pair[1])])
    # The base stands in the second row here and in the first there: equal shape, equal bits.
    assert not target.masks.any()
    assert target.latents.equal(pair[0].latents)


def test_steps_before_fusion_are_the_bases_own(
    policy: Policy, prompts: list[Prompt], trajectories: list[Trajectory]
) -> None:
    pairs = sources(trajectories, prompts)
    for pair, target in zip(pairs, fuse(policy, PLAN, pairs), strict=True):
        same = [t.equal(b) for t, b in zip(target.latents, pair.base.latents, strict=True)]
        assert same == [True, True, True, False, False, False, False]  # x_6, x_5, x_4 | x_3 …
        assert not target.masks[:2].any()
        assert target.masks[2:].any()


def test_unfused_steps_at_the_end_follow_the_plain_policy(
    policy: Policy, model: DiffusionModel, prompts: list[Prompt], trajectories: list[Trajectory]
) -> None:
    plan = dataclasses.replace(PLAN, steps=frozenset({4, 3}))
    pair = sources(trajectories, prompts)[0]
    (target,) = fuse(policy, plan, [pair])
    _, z = policy.noise([0])
    x = target.latents[4][None]
    cond = model.encode([pair.prompt.text])
    with torch.no_grad():
        for i in (4, 5):
            eps, _ = model.predict(x, policy.sampler.timesteps[i], cond, 5.0)
            mean, std = policy.sampler.transition(x, eps, i)
            x = mean + std * z[:, i]
    assert torch.allclose(target.latents[6], x[0], atol=1e-5)


def test_mixed_prompts_fuse_as_alone(
    policy: Policy, prompts: list[Prompt], trajectories: list[Trajectory]
) -> None:
    pairs = sources(trajectories, prompts)
    together = fuse(policy, PLAN, pairs)
    for pair, target in zip(pairs, together, strict=True):
        (alone,) = fuse(policy, PLAN, [pair])
        assert torch.allclose(alone.latents, target.latents, atol=1e-4)
        assert alone.masks.equal(target.masks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_states_are_the_walked_ones(
    policy: Policy, prompts: list[Prompt], dtype: torch.dtype
) -> None:
    """Each stored state, taken as it is, leads to the next by the policy's own transition."""
    coarse = dataclasses.replace(policy, store_dtype=dtype)
    (walked,) = sample(coarse, [0], [prompts[0]], MASK_LAYERS)
    assert walked.latents.dtype == dtype
    _, z = coarse.noise([0])
    cond = coarse.model.encode([prompts[0].text])
    for i in range(6):
        x = walked.latents[i].float()[None]
        with torch.no_grad():
            eps, _ = coarse.model.predict(x, coarse.sampler.timesteps[i], cond, 5.0)
        mean, std = coarse.sampler.transition(x, eps, i)
        step: Tensor = (mean + std * z[:, i])[0]
        assert step.to(dtype).equal(walked.latents[i + 1])


def test_without_guidance(policy: Policy, prompts: list[Prompt]) -> None:
    plain = dataclasses.replace(policy, guidance=None)
    pair = sample(plain, [0, 1], [prompts[0]] * 2, MASK_LAYERS)
    by_one = dataclasses.replace(policy, guidance=1.0)
    (expected,) = sample(by_one, [0], [prompts[0]], MASK_LAYERS)
    assert torch.allclose(pair[0].latents, expected.latents, atol=1e-4)
    (target,) = fuse(plain, PLAN, [Source(0, prompts[0], pair[0], pair[1])])
    assert not torch.allclose(target.latents[-1], pair[0].latents[-1], atol=1e-3)


def test_parse_steps() -> None:
    assert parse_steps("18-1", 20) == frozenset(range(1, 19))
    assert parse_steps("1-18", 20) == parse_steps("18-1", 20)
    assert parse_steps("20, 3-2", 20) == {20, 3, 2}
    assert parse_steps("", 20) == frozenset()
    for bad in ("21-1", "0", "x", "5-"):
        with pytest.raises(ValueError, match=bad):
            parse_steps(bad, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps_offset": 0}, "sigma = 0"),
        ({"set_alpha_to_one": True}, "sigma = 0"),
        ({"clip_sample": True}, "clip_sample"),
        ({"rescale_betas_zero_snr": True}, "zero_snr"),
    ],
)
def test_schedules_without_a_probability_are_refused(
    model: DiffusionModel, change: dict, message: str
) -> None:
    before = model.pipe.scheduler
    model.pipe.scheduler = DDIMScheduler(**{**SCHEDULE, **change})
    try:
        with pytest.raises(UserError, match=message):
            model.sampler(20, 1.0)
    finally:
        model.pipe.scheduler = before
