"""What is measured of images besides the score that training sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from PIL import Image

from dfusion.rewards import Reward, load_reward
from dfusion.settings import Eval
from experiments.similarity import ssim
from testbed.judge import Judge

# The testbed's second scorer: of another kind than the first, trained on scenes of its own.
SECOND = Eval(model="local-dir:testbed/weights/second", pretrained="")


@dataclass(frozen=True)
class Meters:
    """The judge, who tells what is right, and a scorer that training never sees; None for none."""

    judge: Judge | None
    second: Reward | None

    @classmethod
    def of(cls, preset: str, second: str | None = None) -> "Meters":
        """second: package.module:function; by default the testbed's own on the testbed."""
        cpu, testbed = torch.device("cpu"), preset == "testbed"
        chosen = Eval(reward=second) if second else SECOND if testbed else None
        return cls(
            judge=Judge.load() if testbed else None,
            second=load_reward(chosen, cpu) if chosen else None,
        )

    def read(self, images: np.ndarray, texts: Sequence[str]) -> dict[str, Any]:
        """images: uint8 (N, H, W, 3). right: 0 or 1, and second: a score, of every image (or
        nothing); diversity: how much images of a prompt differ."""
        pictures = [Image.fromarray(image) for image in images]
        second = [] if self.second is None else self.second(pictures, list(texts))
        return {
            "right": self.judge.satisfied(images, list(texts)).int().tolist() if self.judge else [],
            "second": [round(float(s), 4) for s in second],
            "diversity": round(diversity(images, texts), 4),
        }


def diversity(images: np.ndarray, texts: Sequence[str]) -> float:
    """Mean of 1 - SSIM over the pairs of images of the same prompt."""
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(text, []).append(i)
    pairs = [pair for group in groups.values() for pair in combinations(group, 2)]
    return float(np.mean([1 - ssim(images[a], images[b]) for a, b in pairs]))
