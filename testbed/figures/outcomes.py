"""What the diffusion model makes of its prompts: right, mistaken, or neither; and whether it knows.

A model that knows two prompts apart and yet draws one for the other can learn to obey; one to which
both are the same cannot learn one without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dfusion.method.sampling import Policy
from testbed.figures.policy import encoded
from testbed.models.judge import UNCLEAR, Judge
from testbed.world.words import CLAIMS, SHAPES, TEMPLATES, Claim, all_claims, mistaken_for, parse

HIGH_NOISE = 900  # of 1000: where layout is decided
Figures = dict[str, float]


def share(hits: Tensor, prompts: Sequence[str]) -> Figures:
    """Mean of a bool tensor (N,), over all and by template."""
    template = torch.tensor([parse(prompt).template for prompt in prompts])
    figures = {"all": hits.float().mean().item()}
    for t in TEMPLATES:
        if (template == t).any():
            figures[f"template{t}"] = hits[template == t].float().mean().item()
    return {name: round(value, 4) for name, value in figures.items()}


def outcomes(judge: Judge, images: np.ndarray, prompts: Sequence[str]) -> dict[str, Figures]:
    """Shares of images uint8 (N, 64, 64, 3) that show their prompt, its mistake, or neither.

    unclear: of which a shape cannot be read, whatever else they show.
    """
    right = judge.satisfied(images, prompts)
    mistaken = judge.satisfied(images, [mistaken_for(parse(p)).prompt for p in prompts])
    read = [
        (r["shape"], r["other"] if parse(p).template == 3 else "")
        for r, p in zip(judge.readings(images), prompts, strict=True)
    ]
    unclear = torch.tensor([UNCLEAR in shapes for shapes in read])
    return {
        "right": share(right, prompts),
        "mistaken": share(mistaken, prompts),
        "neither": share(~right & ~mistaken, prompts),
        "unclear": share(unclear, prompts),
    }


def _other_shape(claim: Claim) -> Claim:
    options = [s for s in SHAPES if s != claim.shape]
    following = options[SHAPES.index(claim.shape) % len(options)]
    changed = replace(claim, shape=following)
    return changed if changed.prompt in CLAIMS else _other_shape(changed)


@torch.no_grad()
def apart(policy: Policy, scenes: np.ndarray) -> dict[str, Figures]:
    """How far the predictions for two prompts differ, relative to their size, at high noise.

    mistake: a prompt and what is mistaken for it; shape: a prompt and the same about another shape;
    ratio: of the two. encodings: of the prompt and its mistake, by the text encoder. scenes: uint8
    (N, 64, 64, 3), noised alike for all prompts.
    """
    model = policy.model
    step = int((policy.sampler.timesteps - HIGH_NOISE).abs().argmin())
    x0, generator = encoded(policy, scenes), torch.Generator().manual_seed(0)
    noise = torch.randn(x0.shape, generator=generator)
    x, _ = policy.sampler.noised(x0, noise, torch.full((len(x0),), step))

    def encode(prompt: str) -> Tensor:
        return model.encode([prompt]).tokens

    def predict(prompt: str) -> Tensor:
        cond = model.encode([prompt] * len(x))
        return model.predict(x, policy.sampler.timesteps[step], cond, None)[0]

    def far(a: Tensor, b: Tensor) -> float:
        return ((a - b).norm() / a.norm()).item()

    figures: dict[str, Figures] = {"mistake": {}, "shape": {}, "ratio": {}, "encodings": {}}
    for t in TEMPLATES:
        claims = all_claims(t)[:: len(all_claims(t)) // 12]
        rows = []
        for claim in claims:
            texts = [c.prompt for c in (claim, mistaken_for(claim), _other_shape(claim))]
            own, mistake, shape = map(predict, texts)
            encodings = far(encode(texts[0]), encode(texts[1]))
            rows.append((far(own, mistake), far(own, shape), encodings))
        mistake, shape, encodings = np.mean(rows, axis=0)
        values = {
            "mistake": mistake,
            "shape": shape,
            "ratio": mistake / shape,
            "encodings": encodings,
        }
        for name, value in values.items():
            figures[name][f"template{t}"] = round(float(value), 4)
    return figures
