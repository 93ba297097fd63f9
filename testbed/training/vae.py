"""Train the autoencoder: 64x64 pictures to 16x16x4 latents.

Most steps see 32x32 crops (sharper sooner on few cores), the last ones whole pictures.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from testbed.training.clock import Clock
from testbed.world.pool import load

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [24, 48, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
}
WHOLE = 0.15  # last share of the time spent on whole pictures
CROP, CROP_BATCH, WHOLE_BATCH = 32, 32, 12
KL_WEIGHT = 2e-6
EDGE_WEIGHT = 0.5


def to_model(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def crops(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random 32x32 windows (CROP_BATCH, 32, 32, 3)."""
    limit = images.shape[1] - CROP + 1
    picks = rng.integers((len(images), limit, limit), size=(CROP_BATCH, 3))
    return np.stack([images[i, y : y + CROP, x : x + CROP] for i, y, x in picks])


def loss_of(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and mean squared error: L1 + squares + L1 of neighbour differences + a little KL."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
    error = y.float() - x
    edges = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) * EDGE_WEIGHT
    kl = posterior.kl().float().mean()
    mse = error.square().mean()
    return error.abs().mean() + mse + edges + KL_WEIGHT * kl, mse.detach()


@torch.no_grad()
def set_scale(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Make latents times scaling_factor have unit standard deviation."""
    latents = vae.encode(to_model(images)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))


def train(images: np.ndarray, steps: int, out: Path, seed: int, lr: float = 2e-3) -> AutoencoderKL:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = AutoencoderKL(**CONFIG)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    crop_steps = int(steps * (1 - WHOLE))
    clock = Clock(steps)
    for step in range(1, steps + 1):
        rate = lr * min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate + 1e-5
        batch = (
            crops(images, rng)
            if step <= crop_steps
            else images[rng.integers(len(images), size=WHOLE_BATCH)]
        )
        loss, mse = loss_of(vae, to_model(batch))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        clock.tick(step, loss=loss.item(), mse=mse.item())
        if step % 1000 == 0 or step == steps:
            set_scale(vae, images[:256])
            vae.save_pretrained(out)
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    train(load(args.pool)[1], args.steps, args.out, args.seed)


if __name__ == "__main__":
    main()
