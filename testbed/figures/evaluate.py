"""Measure the testbed on fresh scenes and samples; writes testbed/weights/figures.json.

python -m testbed.figures.evaluate [--model FOLDER] [--scenes 3000] [--images 4] [--guidance 4]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor

from dfusion.method.sampling import Policy
from testbed.figures.outcomes import Figures, apart, outcomes, share
from testbed.figures.policy import (
    GUIDANCE,
    WEIGHTS,
    as_prompts,
    figures_file,
    load_policy,
    model_of,
    pictures,
    sample_all,
)
from testbed.models.judge import Judge
from testbed.training.scorer import MODELS
from testbed.training.vae import to_model
from testbed.world.augment import round_trip
from testbed.world.pool import build
from testbed.world.prompt_lists import split
from testbed.world.words import PROMPTS, TEMPLATES, one_word_apart

SEED = 99


class Scorer:
    """Cosine similarity of pictures and prompts under the open_clip model."""

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder}"
        self.model = open_clip.create_model(name).eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def table(self, images: np.ndarray) -> Tensor:
        """(N, P) cosines of uint8 images with every prompt in PROMPTS."""
        text = self.model.encode_text(self.tokenizer(list(PROMPTS)), normalize=True)
        parts = to_model(images).split(250)
        return torch.cat([self.model.encode_image(p, normalize=True) @ text.T for p in parts])


def wrong_prompts(prompts: Sequence[str], seed: int) -> list[str]:
    """For each prompt one that differs in one choice, picked evenly."""
    rng = np.random.default_rng(seed)
    options = [one_word_apart(prompt) for prompt in prompts]
    return [o[rng.integers(len(o))] for o in options]


def scores_of(scorer: Scorer, images: np.ndarray, *prompts: Sequence[str]) -> list[Tensor]:
    """(N,) cosines of the images with each list of prompts."""
    table, rows = scorer.table(images), torch.arange(len(images))
    return [table[rows, [PROMPTS.index(p) for p in listed]] for listed in prompts]


def reading_figures(
    judge: Judge,
    scorers: dict[str, Scorer],
    images: np.ndarray,
    prompts: list[str],
    wrong: list[str],
) -> dict[str, Figures]:
    """Judge and scorers on pictures whose truth is known."""
    yes, no = judge.satisfied(images, prompts), ~judge.satisfied(images, wrong)
    figures = {
        "judge_accepts_true": share(yes, prompts),
        "judge_rejects_wrong": share(no, prompts),
        "judge_accuracy": share(torch.cat([yes, no]), prompts + prompts),
    }
    for name, scorer in scorers.items():
        right, other = scores_of(scorer, images, prompts, wrong)
        figures[f"{name}_ranks_true_above_wrong"] = share(right > other, prompts)
    return figures


def ranking(score: Tensor, satisfied: Tensor, prompts: Sequence[str]) -> float:
    """Of pairs of one prompt of which the judge accepts one, how often it scores higher."""
    wins = [
        float(score[i] > score[j])
        for i in range(len(prompts))
        for j in range(len(prompts))
        if prompts[i] == prompts[j] and satisfied[i] and not satisfied[j]
    ]
    return round(float(np.mean(wins)), 4)


def model_figures(
    judge: Judge,
    scorers: dict[str, Scorer],
    policy: Policy,
    images_per_prompt: int,
    scenes: np.ndarray,
) -> dict[str, object]:
    """The diffusion model's own pictures of all train and test prompts."""
    lists = [prompt for t in TEMPLATES for part in split(t) for prompt in part]
    prompts = [prompt for prompt in lists for _ in range(images_per_prompt)]
    made = sample_all(policy, list(as_prompts(prompts)))
    images = pictures(policy, [trajectory.latents[-1] for trajectory in made])
    satisfied = judge.satisfied(images, prompts)
    figures: dict[str, object] = {
        "pictures": len(prompts),
        "guidance": policy.guidance,
        **outcomes(judge, images, prompts),
        "predictions_apart": apart(policy, scenes[:32]),
    }
    for name, scorer in scorers.items():
        (score,) = scores_of(scorer, images, prompts)
        figures[f"{name}_ranks_satisfied_above_not"] = ranking(score, satisfied, prompts)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of judge and scorers")
    parser.add_argument("--model", type=Path, help="a pipeline folder; default: the weights' UNet")
    parser.add_argument(
        "--out", type=Path, help="default: figures.json or figures_<model>.json, beside it"
    )
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--images", type=int, default=4, help="pictures per prompt")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    args = parser.parse_args()
    model = args.model or args.weights / "diffusion"
    judge = Judge.load(args.weights / "judge" / "model.safetensors")
    scorers = {name: Scorer(args.weights / name) for name in MODELS}
    policy = load_policy(model, args.guidance)
    indices, scenes = build(SEED, args.scenes)
    prompts = [PROMPTS[i] for i in indices]
    wrong = wrong_prompts(prompts, SEED)
    decoded = round_trip(model_of(policy).pipe.vae, scenes)
    error = (to_model(decoded) - to_model(scenes)).square().mean().item()
    figures: dict[str, object] = {
        "scenes": args.scenes,
        "autoencoder_mse": round(error, 5),
        "rendered": reading_figures(judge, scorers, scenes, prompts, wrong),
        "round_trip": reading_figures(judge, scorers, decoded, prompts, wrong),
    }
    if args.images:
        figures["samples"] = model_figures(judge, scorers, policy, args.images, scenes)
    out = args.out or figures_file(model, "figures")
    out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
