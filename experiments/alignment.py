"""One alignment run on the testbed: train, then measure with the same noise before and after.

    python -m experiments.alignment --pairs naive --template 1 --seed 42

The scorer's mean and the judge's accuracy (the truth, which training never sees) are taken of each
round's samples and of comparisons made with the same noise. Run again, it goes on where it was.
Results are in results/alignment/, one file a run.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from config.config import testbed
from dfusion.files import write_json
from dfusion.settings import Settings
from dfusion.store import Experiment, Round
from dfusion.training import train_rounds
from experiments.shared_start import borrow
from testbed.evaluate import WEIGHTS
from testbed.judge import Judge

RESULTS = Path(__file__).parent / "results" / "alignment"
DATA = Path("data/alignment")


def name_of(args: argparse.Namespace) -> str:
    """What tells a run from others where no --name does."""
    return args.name or f"{args.method}_{args.pairs}_t{args.template}_s{args.seed}"


def settings_of(args: argparse.Namespace, folder: Path) -> Settings:
    """The testbed preset with this run's method, on the first prompts of a template."""
    settings = testbed()
    name = f"config/prompt/testbed{args.template}"
    prompts = json.loads(Path(f"{name}_train.json").read_text())
    chosen = prompts[:: max(1, len(prompts) // args.prompts)][: args.prompts]
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / f"template{args.template}_{args.prompts}.json"
    listed.write_text(json.dumps(chosen))
    settings.prompt_file = str(listed)
    settings.item_idx_file = f"{name}_item.json"
    settings.save_path, settings.exp_name, settings.seed = str(folder), name_of(args), args.seed
    settings.eval.in_process, settings.device = True, args.device
    settings.sample.batch_size, settings.sample.num_batches_per_epoch = args.images, 1
    given = {
        "method": args.method,
        "pairs": args.pairs,
        "num_epochs": args.rounds,
        "learning_rate": args.learning_rate,
        "updates_per_inner_epoch": args.updates,
        "compare_images": args.compare,
        "compare_every": args.compare_every,
    }
    chosen_flags = {k: v for k, v in given.items() if v is not None}
    settings.train = replace(settings.train, **chosen_flags)
    return settings


def measured(round_: Round, judge: Judge, each: bool = False) -> dict[str, Any]:
    """Scorer mean and judge accuracy of a round's samples; each: of every image too."""
    texts, scores = round_.texts_to_score("images"), round_.scores("images")
    images = np.stack([np.asarray(Image.open(round_.image("images", i))) for i in scores])
    right = judge.satisfied(images, [texts[i] for i in scores])
    means = {
        "images": len(scores),
        "scorer": float(np.mean(list(scores.values()))),
        "judge": float(right.float().mean()),
    }
    if not each:
        return means
    one_by_one = {"scores": [*map(float, scores.values())], "right": right.int().tolist()}
    return {**means, **one_by_one}


def measure(experiment: Experiment, judge: Judge) -> dict[str, Any]:
    """Figures of every round and comparison on disk."""
    path = experiment.folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rounds = {row["round"]: row for row in rows if row["kind"] == "round"}
    kept = ("adopted", "mask_coverage", "seconds", "peak_memory_gib")
    return {
        "rounds": [
            {"round": k, **measured(r, judge), **{n: rounds[k][n] for n in kept}}
            for k, r in experiment.rounds().items()
            if k in rounds
        ],
        "same_noise": [
            {"rounds": k, **measured(r, judge, each=True)}
            for k, r in experiment.comparisons().items()
        ],
        "updates": [row for row in rows if row["kind"] == "update"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", help="default: <method>_<pairs>_t<template>_s<seed>")
    parser.add_argument("--method", default="dpo", choices=("dpo", "ddpo", "dpok"))
    parser.add_argument("--pairs", default="dfusion", choices=("dfusion", "naive", "inversion"))
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--images", type=int, default=32, help="of each prompt and round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--compare", type=int, default=64, help="images of each prompt")
    parser.add_argument("--compare-every", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, help="default: the preset's")
    parser.add_argument("--updates", type=int, help="optimiser steps a pass; default: the preset's")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    torch.manual_seed(0)
    settings = settings_of(args, DATA)
    if other := borrow(settings):
        print(f"The samples before any training are those of {other}.")
    folder = train_rounds(settings)
    judge = Judge.load(WEIGHTS / "judge" / "model.safetensors")
    figures = measure(Experiment(folder), judge)
    out = RESULTS / f"{name_of(args)}.json"
    write_json(out, {"settings": settings.to_dict(), **figures})
    for row in figures["same_noise"]:
        print(
            f"after {row['rounds']} rounds: scorer {row['scorer']:.3f}, "
            f"judge {row['judge']:.1%} of {row['images']} images"
        )
    print(f"Figures are in {out}")


if __name__ == "__main__":
    main()
