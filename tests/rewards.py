"""A reward of one's own, as `--config.eval.reward tests.rewards:redness` plugs it in."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def redness(images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    """Mean of the red channel, 0 … 1."""
    return np.array([np.asarray(image)[..., 0].mean() / 255 for image in images])


class Rank:
    """The place of each image among those of the call, by redness: 0 for the least red."""

    whole_groups = True

    def __init__(self, device: torch.device) -> None:
        self.calls: list[list[float]] = []

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[int]:
        assert len(set(prompts)) == 1
        values = redness(images, prompts).tolist()
        self.calls.append(values)
        return [sorted(values).index(value) for value in values]


class Redness:
    """As a class, which is made with the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        return redness(images, prompts)


class Slow(Redness):
    """Takes at least 0.01 s for a call."""

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        time.sleep(0.01)
        return super().__call__(images, prompts)
