"""What is measured of images besides the score that training sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from PIL import Image

from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import load_reward
from dfusion.settings.schema import Eval
from dfusion.storage.experiment import Round
from experiments.measures.similarity import ssim
from testbed.models.judge import Judge

# The testbed's second scorer: smaller than the first, trained on scenes of its own.
SECOND = Eval(model="local-dir:testbed/weights/second", pretrained="")


@dataclass(frozen=True)
class Meters:
    """The judge, who tells what is right, and a scorer that training never sees; None for none."""

    judge: Judge | None
    second: Reward | None

    @classmethod
    def of(cls, preset: str, second: str | None = None) -> "Meters":
        """second: package.module:function; by default the testbed's own on the testbed."""
        cpu, testbed = torch.device("cpu"), preset.startswith("testbed")
        chosen = Eval(reward=second) if second else SECOND if testbed else None
        return cls(
            judge=Judge.load() if testbed else None,
            second=load_reward(chosen, cpu) if chosen else None,
        )

    def read(self, images: np.ndarray, texts: Sequence[str]) -> dict[str, list[float]]:
        """right: 0 or 1, and second: a score, of every image, or nothing. uint8 (N, H, W, 3)."""
        pictures = [Image.fromarray(image) for image in images]
        second = [] if self.second is None else self.second(pictures, list(texts))
        return {
            "right": self.judge.satisfied(images, list(texts)).int().tolist() if self.judge else [],
            "second": [round(float(s), 4) for s in second],
        }


def judged(round_: Round, kind: str, texts: Sequence[str], judge: Judge) -> torch.Tensor:
    """(N,) bool: whether the first N images of a kind (see `Round.image`) show their prompts."""
    images = [np.asarray(Image.open(round_.image(kind, i))) for i in range(len(texts))]
    return judge.satisfied(np.stack(images), list(texts))


def diversity(images: np.ndarray, texts: Sequence[str]) -> float | None:
    """Mean of 1 - SSIM over the pairs of images of the same prompt; None where there is no pair."""
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(text, []).append(i)
    pairs = [pair for group in groups.values() for pair in combinations(group, 2)]
    if not pairs:
        return None
    return round(float(np.mean([1 - ssim(images[a], images[b]) for a, b in pairs])), 4)
