"""The judge: reads a picture and says whether a prompt is true of it.

A convolutional classifier with one head per attribute, trained apart from the scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from testbed.training.vae import to_model
from testbed.world.words import ACTIVITIES, COLOURS, SHAPES, TEXTURES, Claim, parse

WEIGHTS = Path(__file__).parent.parent / "weights" / "judge" / "model.safetensors"
UNCLEAR = "unclear"
HEADS = {
    "layout": (*ACTIVITIES, "alone", "above", "on the left of"),
    "shape": (*SHAPES, UNCLEAR),  # the actor, the lone shape, the upper or the left one
    "other": (*SHAPES, UNCLEAR),  # the lower or the right one
    "colour": COLOURS,  # of a lone shape
    "texture": TEXTURES,
}


def truth(claim: Claim) -> dict[str, str]:
    """What each head should read when the claim is true; heads it says nothing of are left out."""
    claim = claim.canonical
    if claim.template == 1:
        return {"layout": claim.activity, "shape": claim.shape}
    if claim.template == 2:
        return {
            "layout": "alone",
            "shape": claim.shape,
            "colour": claim.colour,
            "texture": claim.texture,
        }
    return {"layout": claim.relation, "shape": claim.shape, "other": claim.other}


def conv(width_in: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Network(nn.Module):
    """(N, 3, 64, 64) in [-1, 1] to a dict of logits (N, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 24, 2), Residual(24),
            conv(24, 48, 2), Residual(48),
            conv(48, 96, 2), Residual(96),
            conv(96, 48), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(48 * 64, 96, bias=False),
            nn.Linear(96, 192), nn.BatchNorm1d(192), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(c)) for name, c in HEADS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {name: head(features) for name, head in self.heads.items()}


Pictures = np.ndarray | Sequence[Image.Image]


def as_array(images: Pictures) -> np.ndarray:
    """uint8 (N, 64, 64, 3)."""
    if isinstance(images, np.ndarray):
        return images
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


@dataclass(frozen=True)
class Judge:
    """`Judge.load().satisfied(images, prompts)` gives a bool per image."""

    network: Network

    @staticmethod
    def load(path: Path = WEIGHTS) -> Judge:
        network = Network()
        network.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
        )
        return Judge(network.eval())

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = self.network.state_dict()
        save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)

    @torch.no_grad()
    def probabilities(self, images: Pictures) -> dict[str, Tensor]:
        """Per head, probabilities (N, classes)."""
        x = to_model(as_array(images)).split(250)
        parts = [self.network(part) for part in x]
        return {name: torch.cat([p[name] for p in parts]).softmax(1) for name in HEADS}

    def readings(self, images: Pictures) -> list[dict[str, str]]:
        """Per image, what each head reads; a head means something only if its layout holds."""
        best = {name: p.argmax(1).tolist() for name, p in self.probabilities(images).items()}
        return [
            {name: HEADS[name][index[i]] for name, index in best.items()}
            for i in range(len(images))
        ]

    def satisfied(self, images: Pictures, prompts: Sequence[str]) -> Tensor:
        """bool (N,): does every reading that prompt i is about agree with it on image i."""
        expected = [truth(parse(prompt)) for prompt in prompts]
        read = self.readings(images)
        return torch.tensor(
            [all(r[k] == v for k, v in e.items()) for r, e in zip(read, expected, strict=True)]
        )
