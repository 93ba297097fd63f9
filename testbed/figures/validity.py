"""Does self-attention carry what prompts are about? The check that everything else stands on.

Pairs of one prompt of which the judge accepts exactly one are fused with the full mask, in all
layers, at all steps (keys and values of every token come from the reference). The target should
then be right exactly when its reference is.

    python -m testbed.figures.validity [--images 4] [--pairs 64]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfusion.method.fusion import FusionPlan, Source, fuse
from dfusion.method.prompts import Prompt, join
from dfusion.method.sampling import Policy, Trajectory, sample
from dfusion.models.loading import load_model
from dfusion.settings.schema import Pretrained
from testbed.figures.evaluate import ETA, GUIDANCE, STEPS, WEIGHTS
from testbed.models.judge import Judge
from testbed.training.clock import Clock
from testbed.world.prompt_lists import split
from testbed.world.words import TEMPLATES, item_positions

BATCH = 16
SEED = 2024


def load_policy(weights: Path, guidance: float, seed: int = SEED) -> Policy:
    settings = Pretrained(model=str(weights / "diffusion"))
    model = load_model(settings, "cpu", torch.float32)
    return Policy(model, model.sampler(STEPS, ETA), guidance, seed, 0)


def as_prompts(texts: list[str]) -> tuple[Prompt, ...]:
    return join(texts, {text: item_positions(text) for text in texts}, None)


def sample_all(policy: Policy, prompts: list[Prompt]) -> list[Trajectory]:
    """Trajectory i is sample i of the round."""
    layers = policy.model.layers.names["first_up"]
    trajectories: list[Trajectory] = []
    clock = Clock(len(prompts))
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        trajectories += sample(policy, range(start, start + len(part)), part, layers)
        clock.tick(len(trajectories))
    return trajectories


def pictures(policy: Policy, latents: list[Tensor]) -> np.ndarray:
    """uint8 (N, 64, 64, 3) of final latents (4, 16, 16)."""
    parts = torch.stack(latents).split(50)
    return torch.cat([policy.model.decode(part) for part in parts]).numpy()


def differing_pairs(prompts: list[Prompt], right: Tensor, limit: int) -> list[tuple[int, int]]:
    """(base, reference) indices, each image used once; alternately one or the other is right."""
    groups: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, prompt in enumerate(prompts):
        groups[prompt.text][int(right[i])].append(i)
    pairs = [pair for bad, good in groups.values() for pair in zip(bad, good, strict=False)]
    order = np.random.default_rng(SEED).permutation(len(pairs))[:limit]
    return [pairs[k] if n % 2 == 0 else pairs[k][::-1] for n, k in enumerate(order)]


def fuse_fully(
    policy: Policy,
    prompts: list[Prompt],
    trajectories: list[Trajectory],
    pairs: list[tuple[int, int]],
) -> list[Tensor]:
    """Final latents of the targets."""
    everything = frozenset(range(len(policy.model.layers.blocks)))
    plan = FusionPlan(everything, frozenset(range(1, STEPS + 1)), masked=False)
    sources = [Source(b, prompts[b], trajectories[b], trajectories[r]) for b, r in pairs]
    batches = [sources[i : i + BATCH] for i in range(0, len(sources), BATCH)]
    return [target.latents[-1] for batch in batches for target in fuse(policy, plan, batch)]


def check(
    policy: Policy, judge: Judge, template: int, images: int, limit: int, sheet: Path | None
) -> dict[str, float]:
    """Figures of one template; the sheet shows references, bases and targets in three rows."""
    texts = [text for part in split(template) for text in part]
    prompts = [prompt for prompt in as_prompts(texts) for _ in range(images)]
    trajectories = sample_all(policy, prompts)
    own = pictures(policy, [t.latents[-1] for t in trajectories])
    right = judge.satisfied(own, [p.text for p in prompts])
    pairs = differing_pairs(prompts, right, limit)
    fused = pictures(policy, fuse_fully(policy, prompts, trajectories, pairs))
    verdict = judge.satisfied(fused, [prompts[b].text for b, _ in pairs])
    references = right[[r for _, r in pairs]]
    follows = verdict == references
    base, reference = (own[[pair[k] for pair in pairs]] for k in (0, 1))
    if sheet is not None:
        rows = [np.concatenate(list(a[:16]), axis=1) for a in (reference, base, fused)]
        Image.fromarray(np.concatenate(rows)).save(sheet)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a.astype(float) - b) / 127.5).__pow__(2).mean())

    return {
        "pictures": len(prompts),
        "satisfied": round(right.float().mean().item(), 4),
        "pairs": len(pairs),
        "follow": round(follows.float().mean().item(), 4),
        "follow_right_reference": round(follows[references].float().mean().item(), 4),
        "follow_wrong_reference": round(follows[~references].float().mean().item(), 4),
        "mse_target_reference": round(distance(fused, reference), 4),
        "mse_target_base": round(distance(fused, base), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--images", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--pairs", type=int, default=64, help="at most, per template")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--sheets", type=Path, help="folder for pictures")
    args = parser.parse_args()
    policy = load_policy(args.weights, args.guidance)
    judge = Judge.load(args.weights / "judge" / "model.safetensors")
    result = {}
    for template in TEMPLATES:
        sheet = args.sheets / f"validity{template}.png" if args.sheets else None
        result[f"template{template}"] = check(
            policy, judge, template, args.images, args.pairs, sheet
        )
        print(json.dumps(result, indent=2), flush=True)
    path = args.weights / "validity.json"
    path.write_text(json.dumps({"guidance": args.guidance, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
