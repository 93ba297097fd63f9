"""D-Fusion: denoise a base again with the reference's keys and values inside its mask (Eq. 5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfusion.method.denoiser import Cond
from dfusion.method.masks import elsewhere, fusion_mask
from dfusion.method.noise import generator
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import OnStep, Policy, Trajectory, denoise
from diffusers_patched import AttentionControl
from diffusers_patched import Fusion as AttentionFusion


@dataclass(frozen=True)
class FusionPlan:
    """What is fused, where and when.

    kind: "attention" is Eq. 5; see targets.py for others, which use only the first of the steps.
    layers: layer numbers. steps: the paper's t, T … 1. parts: see diffusers_patched.PARTS.
    masked: False fuses everywhere, not only inside the mask. merge: "xor" (Eq. 4) or "or". place:
    "items", or "random" as a control. grids: the layers' (height, width). own_text: in joint
    attention, whether text tokens read the target's own image tokens, not the fused ones.
    """

    layers: frozenset[int]
    steps: frozenset[int]
    parts: frozenset[str] = frozenset({"self_k", "self_v"})
    masked: bool = True
    merge: str = "xor"
    place: str = "items"
    grids: frozenset[tuple[int, int]] = frozenset()
    kind: str = "attention"
    own_text: bool = False

    def first(self, total: int) -> int:
        """The index of the first of `total` steps that is fused; `total` if none is."""
        return total - max((t for t in self.steps if t <= total), default=0)


@dataclass(frozen=True)
class Source:
    """One pair to fuse: the base's sample number, the prompt, and both trajectories."""

    base_index: int
    prompt: Prompt
    base: Trajectory
    reference: Trajectory


@dataclass(frozen=True)
class Target:
    """The fused sample.

    latents: (T+1, C, h, w) in the stored dtype. masks: (T, gh, gw) bool, the cells fused at
    each step; all False at unfused steps.
    """

    latents: Tensor
    masks: Tensor


@torch.no_grad()
def fuse(
    policy: Policy,
    plan: FusionPlan,
    pairs: Sequence[Source],
    on_step: OnStep = lambda i, x: None,
) -> list[Target]:
    """Fuse one batch of pairs; prompts may differ.

    Each fused step is one UNet call on [references, targets] (doubled by guidance). The references'
    states are read from their trajectories. Steps before the first fused one are copied from the
    base.
    """
    masks = torch.stack([_masks(policy, pair, plan) for pair in pairs])  # (P, T, gh, gw)
    total = len(policy.sampler)
    fused = [total - i in plan.steps for i in range(total)]
    first = plan.first(total)
    device = policy.model.device
    bases = torch.stack([pair.base.latents[: first + 1] for pair in pairs]).to(device).float()
    references = torch.stack([pair.reference.latents for pair in pairs]).to(device).float()
    cond = policy.model.encode([pair.prompt.text for pair in pairs])
    _, z = policy.noise([pair.base_index for pair in pairs])
    on_device = masks.to(device)

    def predict(x: Tensor, i: int) -> tuple[Tensor, Tensor | None]:
        if not fused[i]:
            return policy.predict(x, i, cond)
        both = torch.cat([references[:, i], x])
        control = fusion_control(plan, on_device[:, i], policy.doubled)
        output, _ = policy.predict(both, i, Cond.cat([cond, cond]), control)
        return output[len(x) :], None

    states = list(bases.unbind(1))
    walk = denoise(policy, states[-1], z, cond, steps=range(first, total), predict=predict)
    for i, (state, _) in enumerate(walk, first):
        on_step(i, state)
        states.append(state)
    latents = torch.stack(states, 1).to(policy.store_dtype).cpu()
    return [Target(latents[p], masks[p]) for p in range(len(pairs))]


def fusion_control(plan: FusionPlan, mask: Tensor, doubled: bool) -> AttentionControl:
    """The control of one call on [references, targets], doubled by guidance.

    mask: (P, gh, gw) bool. In either half, row r + P (a target) takes from row r (its reference).
    """
    pairs = len(mask)
    half = torch.arange(pairs, device=mask.device).repeat(2)  # (2 P,)
    source = torch.cat([half, half + 2 * pairs]) if doubled else half
    rows = mask.repeat(len(source) // pairs, 1, 1)
    fusion = AttentionFusion(
        source,
        plan.layers,
        rows if plan.masked else None,
        plan.parts,
        plan.grids,
        plan.own_text,
    )
    return AttentionControl(fusions=(fusion,))


def _masks(policy: Policy, pair: Source, plan: FusionPlan) -> Tensor:
    """(T, gh, gw) bool of one pair, Eq. 4, from the reference's maps."""
    masks = fusion_mask(pair.reference.maps.float(), pair.prompt.thresholds, plan.merge)
    if plan.place == "random":
        masks = elsewhere(masks, generator(*policy.origin(pair.base_index)))
    if not plan.masked:
        masks = torch.ones_like(masks)
    total = len(masks)
    used = torch.tensor([total - i in plan.steps for i in range(total)])
    return masks & used[:, None, None]
