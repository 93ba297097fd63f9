"""Does self-attention carry what prompts are about? The check that everything else stands on.

Pairs of one prompt of which the judge accepts exactly one are fused with the full mask, in all
layers, at all steps (keys and values of every token come from the reference). The target should
then be right exactly when its reference is.

    python -m testbed.figures.validity [--model testbed/weights/diffusion] [--images 4] [--pairs 64]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dfusion.method.fusion import FusionPlan, Source, fuse
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import Policy, Trajectory
from testbed.figures.outcomes import outcomes
from testbed.figures.policy import (
    BATCH,
    GUIDANCE,
    SEED,
    STEPS,
    WEIGHTS,
    as_prompts,
    figures_file,
    load_policy,
    pictures,
    sample_all,
)
from testbed.models.judge import Judge
from testbed.world.prompt_lists import split
from testbed.world.words import TEMPLATES


def differing_pairs(prompts: list[Prompt], right: Tensor, limit: int) -> list[tuple[int, int]]:
    """(base, reference) indices, each image used once; alternately one or the other is right."""
    groups: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, prompt in enumerate(prompts):
        groups[prompt.text][int(right[i])].append(i)
    pairs = [pair for bad, good in groups.values() for pair in zip(bad, good, strict=False)]
    order = np.random.default_rng(SEED).permutation(len(pairs))[:limit]
    return [pairs[k] if n % 2 == 0 else pairs[k][::-1] for n, k in enumerate(order)]


@dataclass(frozen=True)
class Pool:
    """Samples of one template's prompts, and pairs (base, reference) of which one is right."""

    prompts: list[Prompt]
    trajectories: list[Trajectory]
    images: np.ndarray  # uint8 (N, 64, 64, 3)
    right: Tensor  # (N,) bool
    pairs: list[tuple[int, int]]

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.prompts]


def differing(policy: Policy, judge: Judge, template: int, images: int, limit: int) -> Pool:
    """Sample all prompts of a template, `images` of each, and pair them."""
    texts = [text for part in split(template) for text in part]
    prompts = [prompt for prompt in as_prompts(texts) for _ in range(images)]
    trajectories = sample_all(policy, prompts)
    own = pictures(policy, [t.latents[-1] for t in trajectories])
    right = judge.satisfied(own, [p.text for p in prompts])
    pairs = differing_pairs(prompts, right, limit)
    return Pool(prompts, trajectories, own, right, pairs)


def fuse_fully(policy: Policy, pool: Pool, layers: frozenset[int]) -> np.ndarray:
    """Images of the targets, fused with the full mask in these layers at all steps."""
    plan = FusionPlan(layers, frozenset(range(1, STEPS + 1)), masked=False)
    made = pool.trajectories
    sources = [Source(b, pool.prompts[b], made[b], made[r]) for b, r in pool.pairs]
    batches = [sources[i : i + BATCH] for i in range(0, len(sources), BATCH)]
    targets = [target for batch in batches for target in fuse(policy, plan, batch)]
    return pictures(policy, [target.latents[-1] for target in targets])


def follow(judge: Judge, pool: Pool, targets: np.ndarray) -> Tensor:
    """(P,) bool: is the target right exactly when its reference is?"""
    verdict = judge.satisfied(targets, [pool.texts[b] for b, _ in pool.pairs])
    return verdict == pool.right[[r for _, r in pool.pairs]]


def check(policy: Policy, judge: Judge, pool: Pool, sheet: Path | None) -> dict[str, float]:
    """Figures of one template; the sheet shows references, bases and targets in three rows."""
    shown = outcomes(judge, pool.images, pool.texts)
    fused = fuse_fully(policy, pool, policy.model.layers.parse("all"))
    follows = follow(judge, pool, fused)
    base, reference = (pool.images[[pair[k] for pair in pool.pairs]] for k in (0, 1))
    references = pool.right[[r for _, r in pool.pairs]]
    if sheet is not None:
        rows = [np.concatenate(list(a[:16]), axis=1) for a in (reference, base, fused)]
        Image.fromarray(np.concatenate(rows)).save(sheet)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a.astype(float) - b) / 127.5).__pow__(2).mean())

    return {
        "pictures": len(pool.images),
        "satisfied": round(pool.right.float().mean().item(), 4),
        **{name: shares["all"] for name, shares in shown.items() if name != "right"},
        "pairs": len(pool.pairs),
        "follow": round(follows.float().mean().item(), 4),
        "follow_right_reference": round(follows[references].float().mean().item(), 4),
        "follow_wrong_reference": round(follows[~references].float().mean().item(), 4),
        "mse_target_reference": round(distance(fused, reference), 4),
        "mse_target_base": round(distance(fused, base), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--model", type=Path, help="a pipeline folder; default: the weights' UNet")
    parser.add_argument(
        "--out", type=Path, help="default: validity.json or validity_<model>.json, beside it"
    )
    parser.add_argument("--images", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--pairs", type=int, default=64, help="at most, per template")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--sheets", type=Path, help="folder for pictures")
    args = parser.parse_args()
    if args.sheets:
        args.sheets.mkdir(parents=True, exist_ok=True)
    model = args.model or args.weights / "diffusion"
    policy = load_policy(model, args.guidance)
    judge = Judge.load(args.weights / "judge" / "model.safetensors")
    result = {}
    for template in TEMPLATES:
        sheet = args.sheets / f"validity{template}.png" if args.sheets else None
        pool = differing(policy, judge, template, args.images, args.pairs)
        result[f"template{template}"] = check(policy, judge, pool, sheet)
        print(json.dumps(result, indent=2), flush=True)
    path = args.out or figures_file(model, "validity")
    path.write_text(json.dumps({"guidance": args.guidance, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
