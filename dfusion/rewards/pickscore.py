"""PickScore (Kirstain et al. 2023, arXiv:2305.01569): --config.eval.reward pickscore.

The scaled cosine of image and text, by a CLIP model of transformers. $PICKSCORE names a local
copy of the model's folder; the default is the published one on the hub.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from dfusion.rewards.published import batches, published

HUB = "yuvalkirstain/PickScore_v1"


class PickScore:
    """The scaled cosine of each image and prompt."""

    def __init__(self, device: torch.device) -> None:
        with published("PICKSCORE", HUB) as found:
            self._model = CLIPModel.from_pretrained(found).eval().to(device)
            self._processor = CLIPProcessor.from_pretrained(found)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        parts = []
        for part in batches(len(images)):
            inputs = self._processor(
                images=[image.convert("RGB") for image in images[part]],
                text=list(prompts[part]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(self._model.device)
            # The diagonal of the (N, N) table: image n with prompt n.
            parts.append(self._model(**inputs).logits_per_image.diagonal().float().cpu())
        return torch.cat(parts)
