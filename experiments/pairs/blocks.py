"""Which blocks of a transformer localise words, and which carry content (the testbed's SD3 model).

    python -m experiments.pairs.blocks [--model FOLDER] [--scenes 32] [--pairs 24]

Words: masks from the maps of one block, by Otsu's thresholds and OR, against the items' true places
on rendered scenes that are noised to each step. Content: pairs of which the judge accepts exactly
one image, fused with the full mask at all steps in some blocks only; the target follows its
reference if it is right exactly when that is. Writes results/testbed_sd3/blocks.json and .png.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from dfusion.method.sampling import Policy
from dfusion.progress import Progress
from dfusion.settings.presets import PRESETS
from dfusion.storage.files import write_json
from experiments.pairs.mask_quality import RULES, measure
from experiments.runs.alignment import RESULTS
from testbed.figures.policy import GUIDANCE, load_policy
from testbed.figures.validity import differing, follow, fuse_fully
from testbed.models.judge import Judge
from testbed.world.words import TEMPLATES

PRESET = "testbed_sd3"
SEED = 97


def block_sets(count: int) -> dict[str, dict[str, frozenset[int]]]:
    """Blocks to fuse, by kind of choice and name."""
    every = frozenset(range(count))
    return {
        "one block": {str(n): frozenset({n}) for n in range(count)},
        "all but one": {str(n): every - {n} for n in range(count)},
        "the first ones": {f"0-{n}": frozenset(range(n + 1)) for n in range(count)},
        "the last ones": {f"{n}-{count - 1}": frozenset(range(n, count)) for n in range(count)},
    }


def words(policy: Policy, scenes: int) -> dict[str, dict[str, list[float]]]:
    """{template: {block: overlap of mask and items at steps t = T … 1}}."""
    count = len(policy.model.layers.blocks)
    rules = {"otsu_or": RULES["otsu_or"]}
    return {
        str(t): {
            str(n): [
                step["overlap"]
                for step in measure(policy, t, scenes, rules, frozenset({n}))["otsu_or"]
            ]
            for n in range(count)
        }
        for t in TEMPLATES
    }


def content(policy: Policy, judge: Judge, images: int, limit: int) -> dict[str, Any]:
    """{template: {"pairs": their number, kind: {blocks: share of targets that follow}}}."""
    sets = block_sets(len(policy.model.layers.blocks))
    found: dict[str, Any] = {}
    progress = Progress("sets of blocks", len(TEMPLATES) * sum(map(len, sets.values())))
    for t in TEMPLATES:
        pool = differing(policy, judge, t, images, limit)
        found[str(t)] = {"pairs": len(pool.pairs), **{kind: {} for kind in sets}}
        for kind, named in sets.items():
            for name, layers in named.items():
                targets = fuse_fully(policy, pool, layers)
                share = follow(judge, pool, targets).float().mean().item()
                found[str(t)][kind][name] = round(share, 4)
                progress.advance()
    return found


def draw(figures: dict[str, Any], path: Path) -> None:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.8), layout="constrained", width_ratios=(1.2, 1)
    )
    _draw_words(left, figures["words"])
    _draw_content(right, figures["content"])
    figure.savefig(path, dpi=130)


def _draw_words(axes: Axes, found: dict[str, dict[str, list[float]]]) -> None:
    """A heat map, blocks down and steps across; means over templates."""
    values = np.mean([list(blocks.values()) for blocks in found.values()], 0)  # (blocks, T)
    image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    total = values.shape[1]
    shown = range(0, total, max(1, total // 10))
    axes.set_xticks(shown, [str(total - n) for n in shown])
    axes.set_yticks(range(len(values)))
    axes.set(xlabel="step t", ylabel="block")
    axes.set_title("words: masks of one block and the items' true places (IoU)", fontsize=10)
    plt.colorbar(image, ax=axes)


def _draw_content(axes: Axes, found: dict[str, Any]) -> None:
    """A line for each way of choosing blocks; means over templates."""
    marks = {"one block": "o-", "all but one": "s--", "the first ones": "^-", "the last ones": "v-"}
    for kind, mark in marks.items():
        values = np.mean([list(template[kind].values()) for template in found.values()], 0)
        axes.plot(values, mark, markersize=4, label=kind)
    axes.set_xticks(range(len(values)))
    axes.set(xlabel="block: alone, left out, last or first of those fused", ylim=(0, 1.02))
    axes.set_title("content: targets that follow their reference", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a pipeline folder; default: the preset's")
    parser.add_argument("--scenes", type=int, default=32, help="rendered scenes of each template")
    parser.add_argument("--images", type=int, default=2, help="of each prompt, to find pairs")
    parser.add_argument("--pairs", type=int, default=24, help="at most, of each template")
    parser.add_argument("--out", type=Path, default=RESULTS / PRESET / "blocks.json")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    model = args.model or Path(PRESETS[PRESET]().pretrained.model)
    policy = load_policy(model, GUIDANCE)
    asked = {"scenes": args.scenes, "images": args.images, "pairs": args.pairs}
    about = {**asked, "weights": policy.model.fingerprint()}
    figures = json.loads(args.out.read_text()) if args.out.exists() else {}
    if about != {key: figures.get(key) for key in about}:
        figures = {
            **about,
            "words": words(policy, args.scenes),
            "content": content(policy, Judge.load(), args.images, args.pairs),
        }
        write_json(args.out, figures)
    draw(figures, args.out.with_suffix(".png"))
    print(json.dumps(figures["content"], indent=1))
    for t, blocks in figures["words"].items():
        means = "  ".join(f"{n} {np.mean(steps):.2f}" for n, steps in blocks.items())
        print(f"template {t}: overlap of masks by block, mean over steps: {means}")
    print(f"Wrote {args.out} and {args.out.with_suffix('.png').name}.")


if __name__ == "__main__":
    main()
