"""How well the fusion mask covers the items, step by step, on scenes of known truth (testbed only).

    python -m experiments.pairs.mask_quality [--preset testbed] [--scenes 96]

Rendered scenes are noised to each denoising step; the mask made there of the item words' maps is
compared with where the items truly are. Writes results/<preset>/mask_quality.json, which
`experiments.runs.parts` draws.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfusion.method.masks import fusion_mask
from dfusion.method.sampling import Policy
from dfusion.progress import Progress
from dfusion.settings import presets
from dfusion.storage.files import write_json
from experiments.runs.alignment import RESULTS, prompts_file
from testbed.figures.policy import GUIDANCE, load_policy
from testbed.figures.thresholds import maps_of, truth_grid
from testbed.world.scenes import render
from testbed.world.words import TEMPLATES

# Thresholds were measured on scenes of seed 31; these are others.
SEED = 97
BATCH = 32
PRESETS = ("testbed", "testbed_sd3")
OUT = RESULTS / "testbed" / "mask_quality.json"


@dataclass(frozen=True)
class Rule:
    """How maps become a mask. own: the files' thresholds; else Otsu's of each map."""

    label: str
    own: bool
    merge: str

    def mask(self, maps: Tensor, thresholds: Sequence[float]) -> Tensor:
        """(I, gh, gw) maps -> (gh, gw) bool."""
        chosen = thresholds if self.own else [None] * len(thresholds)
        return fusion_mask(maps, chosen, self.merge)


RULES = {
    "xor": Rule("XOR, the files' thresholds", True, "xor"),
    "or": Rule("OR, the files' thresholds", True, "or"),
    "otsu": Rule("XOR, Otsu's thresholds", False, "xor"),
    "otsu_or": Rule("OR, Otsu's thresholds", False, "or"),
}


def overlap(masks: Tensor, truths: Tensor) -> dict[str, float]:
    """Means over scenes, masks and truths (N, gh, gw) bool: intersection over union, the share of
    the mask that is right (precision), of the truth that is covered (recall), of all cells set.

    An empty mask has precision 0.
    """
    both = (masks & truths).sum((-2, -1)).double()
    mask, truth, union = (m.sum((-2, -1)) for m in (masks, truths, masks | truths))
    return {
        "overlap": round(float((both / union.clamp(min=1)).mean()), 4),
        "precision": round(float((both / mask.clamp(min=1)).mean()), 4),
        "recall": round(float((both / truth.clamp(min=1)).mean()), 4),
        "coverage": round(float(masks.double().mean()), 4),
    }


def scenes_of(template: int, scenes: int) -> tuple[list[str], np.ndarray, Tensor]:
    """Prompts, pictures uint8 (N, 64, 64, 3) and where their items are, (N, 8, 8) bool."""
    rng = np.random.default_rng((SEED, template))
    listed = json.loads(prompts_file("testbed", template, "train").read_text())
    texts = [listed[n % len(listed)] for n in range(scenes)]
    pictures = [render(text, rng) for text in texts]
    truths = torch.stack([truth_grid(picture).any(0) for picture in pictures])
    return texts, np.stack([picture.image for picture in pictures]), truths


def measure(
    policy: Policy,
    template: int,
    scenes: int,
    rules: Mapping[str, Rule] = RULES,
    layers: frozenset[int] | None = None,
    preset: str = "testbed",
) -> dict[str, list[dict[str, float]]]:
    """Of each rule, the figures at every step t = T … 1; "everywhere": of a mask of all cells.

    layers: that give the mask; None for the model's own. preset: whose thresholds the files have.
    """
    steps = range(len(policy.sampler))
    texts, images, truths = scenes_of(template, scenes)
    thresholds = json.loads(prompts_file(preset, template, "mask").read_text())
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in (*rules, "everywhere")}
    progress = Progress(f"template {template}", len(steps) * scenes)
    for step in steps:
        parts = []
        for start in range(0, scenes, BATCH):
            part = slice(start, start + BATCH)
            parts.append(maps_of(policy, texts[part], images[part], step, layers))
            progress.advance(len(parts[-1]))
        maps = torch.cat(parts)
        for name, rule in rules.items():
            masks = [rule.mask(m, thresholds[t]) for m, t in zip(maps, texts, strict=True)]
            figures[name].append(overlap(torch.stack(masks), truths))
        figures["everywhere"].append(overlap(torch.ones_like(truths), truths))
    return figures


def fingerprint_of_thresholds(preset: str) -> str:
    """Of the thresholds of all templates' files."""
    files = [prompts_file(preset, t, "mask") for t in TEMPLATES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def lines(templates: dict[str, dict[str, list[dict[str, float]]]]) -> list[str]:
    """Means over the steps as text, a line for each template and rule."""
    texts = []
    for template, figures in templates.items():
        for name, steps in figures.items():
            means = {key: np.mean([row[key] for row in steps]) for key in steps[0]}
            said = "  ".join(f"{key} {value:.2f}" for key, value in means.items())
            texts.append(f"template {template}  {name:10}  {said}")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="testbed", choices=PRESETS)
    parser.add_argument("--model", type=Path, help="in place of the preset's")
    parser.add_argument("--out", type=Path, help="default: results/<preset>/mask_quality.json")
    parser.add_argument("--scenes", type=int, default=96, help="of each template")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    settings = presets.PRESETS[args.preset]()
    policy = load_policy(args.model or Path(settings.pretrained.model), GUIDANCE)
    out = args.out or OUT.parent.with_name(args.preset) / OUT.name
    about = {
        "scenes of each template": args.scenes,
        "weights": policy.model.fingerprint(),
        "thresholds": fingerprint_of_thresholds(args.preset),
    }
    saved = json.loads(out.read_text()) if out.exists() else {}
    found = saved.get("templates", {})
    if about != {key: saved.get(key) for key in about}:
        found = {str(t): measure(policy, t, args.scenes, preset=args.preset) for t in TEMPLATES}
        write_json(out, {**about, "templates": found})
    print("\n".join([*lines(found), f"Figures are in {out}"]))


if __name__ == "__main__":
    main()
