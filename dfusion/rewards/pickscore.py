"""PickScore (Kirstain et al. 2023), a scorer that training on CLIP never sees.

    python -m experiments.runs.generalisation --second dfusion.rewards.pickscore:score …

The scaled cosine of image and text, by a CLIP model of transformers. $PICKSCORE names a local
folder; the default is the published model on the hub. It can be the reward, too:
--config.eval.reward dfusion.rewards.pickscore:score.
"""

import os
from collections.abc import Sequence
from functools import cache

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from dfusion.models.stable_diffusion import pick_device

HUB = "yuvalkirstain/PickScore_v1"
BATCH = 32


@cache
def load() -> tuple[CLIPModel, CLIPProcessor]:
    """The model in evaluation mode, and its processor."""
    name = os.environ.get("PICKSCORE", HUB)
    model = CLIPModel.from_pretrained(name).eval().to(pick_device("auto", 0))
    return model, CLIPProcessor.from_pretrained(name)


@torch.no_grad()
def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
    """(N,) scaled cosines, float32 on the CPU."""
    model, processor = load()
    parts = []
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        inputs = processor(
            images=[image.convert("RGB") for image in images[part]],
            text=list(prompts[part]),
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(model.device)
        # The diagonal of the (N, N) table: image n with prompt n.
        parts.append(model(**inputs).logits_per_image.diagonal().float().cpu())
    return torch.cat(parts)
