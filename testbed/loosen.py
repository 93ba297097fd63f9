"""Scenes in the model's own hand: noised, then denoised by the diffusion model for their prompt.

The scorer is trained on them beside clean scenes, since what it has to rank are the model's
samples. A scene keeps what it shows (its prompt is the truth, no reader labels anything), but its
outlines come out as loose as the model draws them.

python -m testbed.loosen --pool pool_scorer.npz --model testbed/weights/diffusion --out loose.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from testbed.clock import Clock
from testbed.pool import load
from testbed.words import PROMPTS

STEPS, ETA, GUIDANCE = 20, 1.0, 5.0
WEAKEST, STRONGEST = 0.35, 0.7  # share of the steps that are denoised again
BATCH = 20


def loosen(pipeline: StableDiffusionImg2ImgPipeline, prompts: list[str], images: np.ndarray,
           strength: float, generator: torch.Generator) -> np.ndarray:  # fmt: skip
    """uint8 (N, 64, 64, 3) as the model draws them, after the last `strength` of its steps."""
    output = pipeline(
        prompts,
        [Image.fromarray(image) for image in images],
        strength=strength,
        num_inference_steps=STEPS,
        eta=ETA,
        guidance_scale=GUIDANCE,
        generator=generator,
    )
    return np.stack([np.asarray(image) for image in output.images])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a diffusers folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000, help="the pool's first scenes")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        args.model, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    indices, images = (part[: args.count] for part in load(args.pool))
    generator = torch.Generator().manual_seed(args.seed)
    clock, drawn = Clock(len(images)), []
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        strength = WEAKEST + (STRONGEST - WEAKEST) * torch.rand((), generator=generator).item()
        prompts = [PROMPTS[i] for i in indices[part]]
        drawn.append(loosen(pipeline, prompts, images[part], strength, generator))
        clock.tick(min(start + BATCH, len(images)))
    np.savez(args.out, prompts=indices, images=np.concatenate(drawn))


if __name__ == "__main__":
    main()
