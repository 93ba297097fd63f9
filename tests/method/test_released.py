"""The `released` preset against the authors' released maths, restated slowly and independently.

What their code does in one fused step (attention_processor.py, unet_2d_condition.py): three UNet
passes of which one only re-renders the base; explicit attention matrices; the reference pass keeps
every self-attention's K and V, and averages the conditional half of all cross-attention matrices on
the grid of the first up-sampling layer over modules and heads; masks by OR; the mask repeated for
both guidance halves and resized to each layer by nearest neighbour.
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from dfusion.method.fusion import FusionPlan, Source, fuse
from dfusion.method.masks import fusion_mask
from dfusion.method.prompts import Item, Prompt
from dfusion.method.sampling import Policy, sample
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.plan import plan_of
from dfusion.settings.presets import PRESETS

GUIDANCE = 5.0
MASK_SIDE = 4  # the grid of the first up-sampling layer of the tiny model
FUSED_LAYERS = ("mid_block", "up_blocks")


class SlowAttention:
    """Explicit attention; keeps K and V, or uses those given, module by module."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kept: tuple[Tensor, Tensor] | None = None
        self.given: tuple[Tensor, Tensor, Tensor] | None = None
        self.probs: Tensor | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(f(x))
            for f, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, context),
                (attn.to_v, context),
            )
        )
        if encoder_hidden_states is None:
            self.kept = (k, v)
            if self.given is not None:
                k2, v2, mask = self.given
                side = round(k.shape[1] ** 0.5)
                both = torch.cat([mask] * 2)[:, None].float()
                wide = F.interpolate(both, (side, side)).flatten(1)
                wide = wide.repeat_interleave(attn.heads, 0)[..., None]
                k, v = k2 * wide + k * (1 - wide), v2 * wide + v * (1 - wide)
        probs = torch.softmax(q @ k.transpose(1, 2) * attn.scale, -1)
        self.probs = probs if encoder_hidden_states is not None else None
        return attn.to_out[0](attn.batch_to_head_dim(probs @ v))


def slow_mask(
    processors: dict[str, SlowAttention], heads: int, columns: list[int], thr: list[float]
) -> Tensor:
    """(1, side, side) bool from the last pass's cross-attention matrices."""
    maps = []
    for processor in processors.values():
        probs = processor.probs
        if probs is not None and probs.shape[1] == MASK_SIDE**2:
            maps.append(probs.chunk(2)[1][:, :, columns])
    assert len(maps) == 4  # down_blocks.1, mid_block, and two of up_blocks.0
    mean = torch.stack(maps).mean(0).unflatten(0, (1, heads)).mean(1)  # (1, cells, items)
    binary = (mean >= torch.tensor(thr)).any(-1)
    return binary.unflatten(1, (MASK_SIDE, MASK_SIDE))


def test_released_preset_gives_the_released_target(model: DiffusionModel) -> None:
    settings = PRESETS["released"]()
    plan, mask_layers = plan_of(settings, model.layers)
    plan = FusionPlan(plan.layers, frozenset({4, 3, 2, 1}), plan.parts, plan.masked, plan.merge)
    prompt = Prompt("a cat the sandwich", (Item("cat", 0.0625), Item("the", 0.0626)))
    policy = Policy(model, model.sampler(6, 1.0), GUIDANCE, seed=11, round=0)
    reference, base = sample(policy, [0, 1], [prompt] * 2, mask_layers)
    (target,) = fuse(policy, plan, [Source(1, prompt, base, reference)])

    unet = model.network
    stock = dict(unet.attn_processors)
    slow = {name: SlowAttention(name) for name in stock}
    unet.set_attn_processor(dict(slow))
    try:
        cond = model.encode(["", prompt.text]).tokens
        x_reference, z_reference = policy.noise([0])
        x_target, z_target = policy.noise([1])
        masks = []
        with torch.no_grad():
            for i, t in enumerate(policy.sampler.timesteps):
                x_reference, mask = step(policy, slow, x_reference, z_reference[:, i], i, t, cond)
                masks.append(mask)
                if 6 - i in plan.steps:
                    for name, processor in slow.items():
                        if "attn1" in name and name.startswith(FUSED_LAYERS):
                            assert processor.kept is not None
                            processor.given = (*processor.kept, mask)
                x_target, _ = step(policy, slow, x_target, z_target[:, i], i, t, cond)
                for processor in slow.values():
                    processor.given = None
    finally:
        unet.set_attn_processor(stock)
    coverage = torch.stack(masks).float().mean()
    assert 0.1 < coverage < 0.9  # a mask that is empty or full would prove nothing
    assert target.masks[2:].equal(torch.cat(masks)[2:])
    assert torch.allclose(target.latents[-1], x_target[0], atol=2e-4)
    assert not torch.allclose(base.latents[-1], x_target[0], atol=1e-2)
    # Eq. 4 proper is another mask here, so the test can tell the two apart.
    xor = fusion_mask(reference.maps.float(), prompt.thresholds, "xor")
    assert not xor[2:].equal(target.masks[2:])


def step(
    policy: Policy,
    slow: dict[str, SlowAttention],
    x: Tensor,
    z: Tensor,
    i: int,
    t: Tensor,
    cond: Tensor,
) -> tuple[Tensor, Tensor]:
    """One released sampling step: guidance, DDIM, and the mask of this pass."""
    eps = policy.model.network(torch.cat([x, x]), t, cond).sample
    uncond, text = eps.chunk(2)
    mean, std = policy.sampler.transition(x, uncond + GUIDANCE * (text - uncond), i)
    heads = policy.model.network.mid_block.attentions[0].transformer_blocks[0].attn1.heads
    mask = slow_mask(slow, heads, [2, 3], [0.0625, 0.0626])
    return mean + std[:, None, None, None] * z, mask
