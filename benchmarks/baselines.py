"""What the stages are faster than: the released design of fusion, and a plain training loop.

Both are slow on purpose, and say the same maths as the library in other words.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from dfusion.method.fusion import FusionPlan, Source
from dfusion.method.masks import fusion_mask
from dfusion.method.sampling import Policy
from dfusion.models.diffusion_model import DiffusionModel
from diffusers_patched import UNet2DConditionModel


@dataclass
class Passes:
    """What the three passes of a step share.

    mask: (P, gh, gw) bool in the target's pass, else None. kept: the reference's K and V by module.
    """

    keeping: bool = False
    mask: Tensor | None = None
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class ExplicitAttention:
    """softmax(Q K^T / sqrt(D)) V with the whole matrix in memory, for one module.

    fused: whether the target takes the reference's K and V here. Shapes: N rows, S tokens.
    """

    def __init__(self, name: str, fused: bool, passes: Passes) -> None:
        self.name, self.fused, self.passes = name, fused, passes

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # (N, S, C)
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        own = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if own and self.fused:
            k, v = self._shared(k, v)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        matrix = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)  # (N, H, S, L)
        out = (matrix @ v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))

    def _shared(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.passes.keeping:
            self.passes.kept[self.name] = k, v
        if self.passes.mask is None:
            return k, v
        side = round(k.shape[1] ** 0.5)
        grid = F.interpolate(self.passes.mask[:, None].float(), (side, side))
        inside = (grid.flatten(1) > 0.5).repeat(len(k) // len(grid), 1)[..., None]  # guided twice
        theirs = self.passes.kept[self.name]
        return torch.where(inside, theirs[0], k), torch.where(inside, theirs[1], v)


@contextmanager
def explicit_attention(unet: UNet2DConditionModel, layers: frozenset[int]) -> Iterator[Passes]:
    """Explicit matrices in every module of the UNet; the given layers can be fused."""
    before, passes = unet.attn_processors, Passes()
    table = unet.layers
    unet.set_attn_processor(
        {n: ExplicitAttention(n, table.layer_of(n) in layers, passes) for n in before}
    )
    try:
        yield passes
    finally:
        unet.set_attn_processor(before)


@torch.no_grad()
def released_fusion(
    policy: Policy, plan: FusionPlan, pairs: Sequence[Source], batch_size: int
) -> list[Tensor]:
    """The targets' states, (T+1, C, h, w) each: batch by batch, three UNet passes at every step.

    Knows keys and values in square masks only, which is what the released code fuses.
    """
    batches = [pairs[n : n + batch_size] for n in range(0, len(pairs), batch_size)]
    assert isinstance(policy.model, DiffusionModel)
    with explicit_attention(policy.model.network, plan.layers) as passes:
        return [x for batch in batches for x in _released_targets(policy, plan, batch, passes)]


def _released_targets(
    policy: Policy, plan: FusionPlan, pairs: Sequence[Source], passes: Passes
) -> Tensor:
    """(P, T+1, C, h, w)."""
    model, sampler, total = policy.model, policy.sampler, len(policy.sampler)
    cond = model.encode([pair.prompt.text for pair in pairs])
    _, z = policy.noise([pair.base_index for pair in pairs])
    masks = torch.stack(
        [fusion_mask(p.reference.maps.float(), p.prompt.thresholds, plan.merge) for p in pairs]
    ).to(model.device)  # (P, T, gh, gw)
    references = torch.stack([pair.reference.latents for pair in pairs]).to(model.device).float()
    base = target = torch.stack([pair.base.latents[0] for pair in pairs]).to(model.device).float()
    states = [target]
    for i in range(total):

        def walked(x: Tensor, i: int = i) -> Tensor:
            output, _ = policy.predict(x, i, cond)
            mean, std = sampler.transition(x, output, i)
            return policy.rounded(mean + std.reshape(-1, 1, 1, 1) * z[:, i])

        passes.keeping, passes.mask = True, None
        walked(references[:, i])
        passes.keeping = False
        base = walked(base)
        passes.mask = masks[:, i] if total - i in plan.steps else None
        target = walked(target)
        states.append(target)
    return torch.stack(states, 1).cpu()


@dataclass(frozen=True)
class Example:
    """A pair to train on: its prompt and both sides' states, (T+1, C, h, w)."""

    text: str
    preferred: Tensor
    base: Tensor


def log_probs(policy: Policy, network: nn.Module, example: Example, i: int) -> Tensor:
    """(2,): step i of the preferred side and of the base, one UNet call each."""
    found = []
    for states in (example.preferred, example.base):
        x, x_next = (states[k : k + 1].to(policy.model.device).float() for k in (i, i + 1))
        cond = policy.model.encode([example.text])
        output, _ = policy.predict(x, i, cond, network=network)
        mean, std = policy.sampler.transition(x, output, i)
        found.append(policy.sampler.log_prob(x_next, mean, std))
    return torch.cat(found)


@torch.no_grad()
def old_policy_pass(
    policy: Policy, network: nn.Module, examples: Sequence[Example]
) -> list[list[Tensor]]:
    """log p_theta_old of every step of every pair, by a pass of its own."""
    steps = range(len(policy.sampler))
    return [[log_probs(policy, network, e, i) for i in steps] for e in examples]


def plain_inner_epoch(
    policy: Policy,
    network: nn.Module,
    examples: Sequence[Example],
    old: list[list[Tensor]],
    beta: float,
    clip: float,
    loss_scale: float = 1.0,
) -> None:
    """Add `loss_scale` times the gradient of Eq. 6, summed over pairs and all steps, one by one."""
    for example, before in zip(examples, old, strict=True):
        for i in range(len(policy.sampler)):
            ratio = (log_probs(policy, network, example, i) - before[i]).exp()
            kept = ratio.clamp(1 - clip, 1 + clip)
            loss = torch.log1p(torch.exp(-beta * (kept[0] - kept[1])))
            (loss * loss_scale).backward()
