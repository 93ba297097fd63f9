"""What the two readers (scorer and judge) train on: VAE round trips, noise, shifts; arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from testbed.training.vae import to_model


def arguments(
    description: str | None, epochs: int, seed: int, models: Sequence[str] = ()
) -> argparse.Namespace:
    """What training either reader takes from the command line; models: those to choose from."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=seed)
    if models:
        parser.add_argument("--model", default=models[0], choices=models)
    return parser.parse_args()


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: np.ndarray, latent_noise: float = 0.0) -> np.ndarray:
    """Encode and decode uint8 (N, 64, 64, 3); latent_noise is in standard deviations."""
    decoded = []
    for start in range(0, len(images), 100):
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(to_model(images[start : start + 100])).latent_dist.mean
            noise = latent_noise / vae.config.scaling_factor * torch.randn_like(latent)
            picture = vae.decode(latent + noise).sample.float()
        decoded.append(((picture.clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(decoded).permute(0, 2, 3, 1).numpy()


def with_round_trips(vae: AutoencoderKL, images: np.ndarray, share: float) -> np.ndarray:
    """A copy in which the first `share` of the pictures went through the autoencoder."""
    count = int(len(images) * share)
    return np.concatenate([round_trip(vae, images[:count], 0.1), images[count:]])


def jitter(x: Tensor) -> Tensor:
    """Random shift by up to 3 pixels, brightness, contrast, blur and noise of (N, 3, 64, 64)."""
    n, size = len(x), x.shape[-1]
    dx, dy = (int(torch.randint(-3, 4, ())) for _ in range(2))
    padded = F.pad(x, (3, 3, 3, 3), mode="replicate")
    x = padded[:, :, 3 + dy : 3 + dy + size, 3 + dx : 3 + dx + size]
    gain = 1 + 0.12 * (torch.rand(n, 1, 1, 1) * 2 - 1)
    lift = 0.1 * (torch.rand(n, 3, 1, 1) * 2 - 1)
    weight = torch.rand(n, 1, 1, 1) * 0.6
    x = (1 - weight) * x + weight * F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return x * gain + lift + 0.08 * torch.rand(n, 1, 1, 1) * torch.randn_like(x)


def garble(x: Tensor) -> Tensor:
    """Bend (N, 3, 64, 64) by a strong smooth random field, so that no shape is left."""
    field = torch.randn(len(x), 2, 9, 9) * 0.24
    field = F.interpolate(field, size=x.shape[-2:], mode="bicubic", align_corners=True)
    identity = torch.eye(2, 3).expand(len(x), 2, 3)
    grid = F.affine_grid(identity, list(x.shape), align_corners=False)
    return F.grid_sample(
        x, grid + field.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
