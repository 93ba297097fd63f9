"""HPSv2.1 (Wu et al. 2023), a scorer that training on CLIP never sees.

    python -m experiments.runs.generalisation --second dfusion.rewards.hpsv2:score …

It is open_clip's ViT-H-14 with its own weights, so our CLIP scorer loads it and the hpsv2 package
is not needed (its scores differ by less than 1e-4, as it resizes tensors instead of images).
$HPSV2 names a local file; the default is the published one on the hub.
"""

import os
from collections.abc import Sequence
from functools import cache

import numpy as np
from huggingface_hub import hf_hub_download
from PIL import Image

from dfusion.models.stable_diffusion import pick_device
from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import load_reward
from dfusion.settings.schema import Eval

MODEL = "ViT-H-14"
HUB, FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
BATCH = 32


@cache
def load() -> Reward:
    """The model, ready to score."""
    path = os.environ.get("HPSV2") or hf_hub_download(HUB, FILE)
    return load_reward(Eval(model=MODEL, pretrained=path), pick_device("auto", 0))


def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    """(N,) cosines of image and text."""
    reward = load()
    parts = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    return np.concatenate([np.asarray(reward(images[p], prompts[p])) for p in parts])
