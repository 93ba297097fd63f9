"""Targets made without fusion: controls that show what fusion adds to shared noise.

Like a fused target, one of these looks like its base and may score better. Nothing of the reference
goes into it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfusion.method.fusion import FusionPlan, Source, Target
from dfusion.method.sampling import OnStep, Policy, denoise


@torch.no_grad()
def branch(
    policy: Policy,
    plan: FusionPlan,
    pairs: Sequence[Source],
    on_step: OnStep = lambda i, x: None,
) -> list[Target]:
    """The base's states up to the first step of the plan, and other noise from there.

    Like the branches of BranchGRPO (2509.06040) or TreeGRPO (2512.08153).
    """
    first = plan.first(len(policy.sampler))
    start = torch.stack([pair.base.latents[first] for pair in pairs]).float()
    _, z = policy.other_noise([pair.base_index for pair in pairs])
    return _walked(policy, pairs, first, start.to(policy.model.device), z, on_step)


@torch.no_grad()
def renoise(
    policy: Policy,
    plan: FusionPlan,
    pairs: Sequence[Source],
    on_step: OnStep = lambda i, x: None,
) -> list[Target]:
    """The base's image, noised to the plan's first step and denoised again with other noise.

    DenseDPO (2506.03517) makes its pairs like this. There, both sides are denoised from the noised
    image; here, one side is the image itself. The target has no trajectory of its own before the
    first step of the plan: its states there are the base's, and the last of them does not lead to
    the target's first own state.
    """
    total = len(policy.sampler)
    first = plan.first(total)
    noise, z = policy.other_noise([pair.base_index for pair in pairs])
    x0 = torch.stack([pair.base.latents[-1] for pair in pairs]).float().to(policy.model.device)
    level = min(first, total - 1)  # at T, nothing is denoised, and the level does not matter
    start = policy.sampler.signal[level] * x0 + policy.sampler.noise[level] * noise
    return _walked(policy, pairs, first, policy.rounded(start) if first < total else x0, z, on_step)


def _walked(
    policy: Policy, pairs: Sequence[Source], first: int, start: Tensor, z: Tensor, on_step: OnStep
) -> list[Target]:
    """Denoised by the plain policy from `start`, (P, C, h, w), at step `first` on.

    The mask is everywhere: any cell may differ from the base's.
    """
    before = torch.stack([pair.base.latents[:first] for pair in pairs])
    states = [start]
    cond = policy.model.encode([pair.prompt.text for pair in pairs])
    walk = denoise(policy, start, z, cond, steps=range(first, len(policy.sampler)))
    for i, (state, _) in enumerate(walk, first):
        on_step(i, state)
        states.append(state)
    after = torch.stack(states, 1).to(policy.store_dtype).cpu()
    latents = torch.cat([before, after], 1)
    found = []
    for p, pair in enumerate(pairs):
        masks = torch.ones_like(pair.reference.maps[:, 0], dtype=torch.bool)
        masks[:first] = False
        found.append(Target(latents[p], masks))
    return found
