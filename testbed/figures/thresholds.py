"""Fill config/prompt/testbed*_mask.json: a threshold per item, measured on scenes of known truth.

Rendered scenes are noised to the steps that fusion uses; the item's cross-attention map (of the
layers that masks come from in sampling) is compared with the item's true region. Per template,
place in the prompt and word, the threshold with the best mean overlap (intersection over union) is
kept. The transformer's are in config/prompt/testbed*_sd3_mask.json; testbed1_prop_mask.json is for
masks of the prop alone.

    python -m testbed.figures.thresholds [--model testbed/weights/diffusion] [--scenes 24]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dfusion.method.masks import item_maps
from dfusion.method.sampling import Policy, pack
from diffusers_patched import AttentionControl, Record
from testbed.figures.policy import (
    GUIDANCE,
    WEIGHTS,
    as_prompts,
    encoded,
    figures_file,
    load_policy,
    mask_layers,
)
from testbed.training.clock import Clock
from testbed.world.prompt_lists import FOLDER, write_json
from testbed.world.scenes import Picture, render
from testbed.world.words import TEMPLATES, all_claims, item_positions

GRID = 8
CANDIDATES = torch.logspace(-6, -0.3, 120)
SEED = 31
BATCH = 32
SLACK = 0.02  # maps rise steeply at an item's edge: many thresholds are nearly as good
FIRST = 3  # steps before this one (of 20) know nothing of where things are

Maps = dict[tuple[int, str], list[tuple[Tensor, Tensor]]]  # (place, word): maps and truths


def truth_grid(picture: Picture) -> Tensor:
    """bool (I, 8, 8): cells of which the item covers at least 30 %."""
    items = torch.from_numpy(picture.items).float()
    return F.avg_pool2d(items[None], 64 // GRID)[0] >= 0.3


@torch.no_grad()
def maps_of(
    policy: Policy,
    texts: list[str],
    images: np.ndarray,
    step: int,
    layers: frozenset[int] | None = None,
) -> Tensor:
    """(N, I, 8, 8) maps of the items of noised scenes. layers: None for `mask_layers`."""
    model, prompts = policy.model, as_prompts(texts)
    x0 = encoded(policy, images)
    x, _ = policy.sampler.noised(x0, torch.randn_like(x0), torch.full((len(x0),), step))
    columns, groups = pack([model.columns(prompt) for prompt in prompts])
    record = Record(
        mask_layers(policy) if layers is None else layers,
        columns,
        first_row=len(texts),
        keys=policy.map_keys(texts),
    )
    _, maps = policy.predict(x, step, model.encode(texts), AttentionControl(record))
    assert maps is not None
    return torch.stack([item_maps(own, group) for own, group in zip(maps, groups, strict=True)])


def collect(policy: Policy, template: int, scenes: int) -> Maps:
    """Maps and true regions of all items of a template, over scenes and fused steps."""
    rng = np.random.default_rng((SEED, template))
    texts = [claim.prompt for claim in all_claims(template)]
    drawn = [texts[rng.integers(len(texts))] for _ in range(scenes * 16)]
    found: Maps = defaultdict(list)
    clock = Clock(len(drawn))
    for start in range(0, len(drawn), BATCH):
        part = drawn[start : start + BATCH]
        shown = [render(text, rng) for text in part]
        images = np.stack([picture.image for picture in shown])
        step = FIRST + int(rng.integers(len(policy.sampler) - FIRST))
        maps = maps_of(policy, part, images, step)
        for text, picture, own in zip(part, shown, maps, strict=True):
            for place, position in enumerate(item_positions(text)):
                truth = truth_grid(picture)[place]
                found[place, text.split()[position]].append((own[place], truth))
        clock.tick(start + len(part))
    return found


def best_threshold(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The middle of the candidates whose mean overlap is within SLACK of the best; its overlap."""
    maps, truths = (torch.stack(part) for part in zip(*pairs, strict=True))
    masks = maps >= CANDIDATES[:, None, None, None]  # (C, N, 8, 8)
    both = (masks & truths).sum((-2, -1)).float()
    overlap = (both / (masks | truths).sum((-2, -1)).clamp(min=1)).mean(1)
    good = (overlap >= overlap.max() - SLACK).nonzero().flatten()
    best = int(good[len(good) // 2])
    return float(f"{CANDIDATES[best].item():.3g}"), overlap[best].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=WEIGHTS / "diffusion")
    parser.add_argument("--scenes", type=int, default=24, help="batches of 16 scenes per template")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    args = parser.parse_args()
    policy = load_policy(args.model, args.guidance)
    kind = "mask" if args.model.name == "diffusion" else f"{args.model.name}_mask"
    torch.manual_seed(SEED)
    overlaps, every = {}, dict[str, list[float]]()
    for template in TEMPLATES:
        best = {k: best_threshold(v) for k, v in collect(policy, template, args.scenes).items()}
        thresholds = {
            claim.prompt: [
                best[place, claim.prompt.split()[position]][0]
                for place, position in enumerate(item_positions(claim.prompt))
            ]
            for claim in all_claims(template)
        }
        write_json(FOLDER / f"testbed{template}_{kind}.json", thresholds)
        every |= thresholds
        overlaps[f"template{template}"] = {
            f"{word} ({place + 1})": {"threshold": threshold, "overlap": round(overlap, 3)}
            for (place, word), (threshold, overlap) in sorted(best.items())
        }
    if kind == "mask":
        demo = json.loads((FOLDER / "demo.json").read_text())
        write_json(FOLDER / "demo_mask.json", {prompt: every[prompt] for prompt in demo})
        props = {claim.prompt: every[claim.prompt][-1:] for claim in all_claims(1)}
        write_json(FOLDER / "testbed1_prop_mask.json", props)
    print(json.dumps(overlaps, indent=2))
    figures_file(args.model, "thresholds").write_text(json.dumps(overlaps, indent=2) + "\n")


if __name__ == "__main__":
    main()
