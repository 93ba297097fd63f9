"""HPSv2.1 (Wu et al. 2023, arXiv:2306.09341): --config.eval.reward hpsv2.

It is open_clip's ViT-H-14 with its own weights, so our CLIP scorer loads it and the hpsv2 package
is not needed (its scores differ by less than 1e-4, as it resizes tensors instead of images).
$HPSV2 names a local copy of the weights file; the default is the published one on the hub.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from PIL import Image

from dfusion.rewards.clip import clip_reward
from dfusion.rewards.published import batches, published
from dfusion.settings.schema import Eval

MODEL = "ViT-H-14"
HUB, FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"


class HPSv2:
    """The cosine of image and text."""

    def __init__(self, device: torch.device) -> None:
        with published("HPSV2", HUB) as found:
            path = found if Path(found).is_file() else hf_hub_download(found, FILE)
            self._reward = clip_reward(Eval(model=MODEL, pretrained=path), device)

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        parts = [self._reward(images[p], prompts[p]) for p in batches(len(images))]
        return np.concatenate([np.asarray(part) for part in parts])
