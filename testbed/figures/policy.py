"""How the figures sample a model of the testbed: through dfusion, whatever its family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfusion.method.prompts import Prompt, join
from dfusion.method.sampling import Policy, Trajectory, sample
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import load_model
from dfusion.settings.schema import Pretrained
from testbed.training.clock import Clock
from testbed.training.vae import to_model
from testbed.world.words import item_positions

WEIGHTS = Path(__file__).parent.parent / "weights"
STEPS, ETA, GUIDANCE = 20, 1.0, 5.0
MASK_LAYERS = {"unet": "first_up", "transformer": "2,3"}  # by what diffusers calls the network
BATCH = 16
SEED = 2024


def figures_file(model: Path, kind: str) -> Path:
    """Where figures of a kind are kept, beside the model: the UNet's under the kind's own name."""
    return model.parent / (
        f"{kind}.json" if model.name == "diffusion" else f"{kind}_{model.name}.json"
    )


def load_policy(model: Path, guidance: float, seed: int = SEED) -> Policy:
    """model: a pipeline folder."""
    loaded = load_model(Pretrained(model=str(model)), "cpu", torch.float32)
    return Policy(loaded, loaded.sampler(STEPS, ETA), guidance, seed, 0)


def model_of(policy: Policy) -> DiffusionModel:
    """The policy's model, whose pipeline is at hand."""
    assert isinstance(policy.model, DiffusionModel)
    return policy.model


def mask_layers(policy: Policy) -> frozenset[int]:
    """The layers that the maps of words are taken from."""
    return policy.model.layers.parse(MASK_LAYERS[model_of(policy).network_name])


def as_prompts(texts: list[str]) -> tuple[Prompt, ...]:
    return join(texts, {text: item_positions(text) for text in texts}, None)


def sample_all(policy: Policy, prompts: list[Prompt]) -> list[Trajectory]:
    """Trajectory i is sample i of the round."""
    trajectories: list[Trajectory] = []
    clock = Clock(len(prompts))
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        numbers = range(start, start + len(part))
        trajectories += sample(policy, numbers, part, mask_layers(policy))
        clock.tick(len(trajectories))
    return trajectories


def pictures(policy: Policy, latents: list[Tensor]) -> np.ndarray:
    """uint8 (N, 64, 64, 3) of final latents (4, 16, 16)."""
    parts = torch.stack(latents).split(50)
    return torch.cat([policy.model.decode(part) for part in parts]).numpy()


@torch.no_grad()
def encoded(policy: Policy, images: np.ndarray) -> Tensor:
    """Latents (N, 4, 16, 16) of uint8 images (N, 64, 64, 3)."""
    vae = model_of(policy).pipe.vae
    return vae.encode(to_model(images)).latent_dist.mean * vae.config.scaling_factor
