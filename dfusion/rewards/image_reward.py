"""ImageReward (Xu et al. 2023, arXiv:2304.05977): --config.eval.reward imagereward.

BLIP's image encoder (ViT-L/16) and image-grounded text encoder (BERT), and an MLP on the text's
first token; the published checkpoint is read into transformers' BLIP, so the ImageReward package is
not needed. $IMAGEREWARD names a local folder with ImageReward.pt and BERT's vocab.txt; the defaults
are the published ones on the hub.

Tested with small random weights in the checkpoint's format, as the true ones cannot be loaded where
the tests run: the image encoder against timm's, the reading of every weight by its name, the score.
The checkpoint's names and the constants are those of the published code. That scores equal the
package's own with the true weights has not been checked.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)
from transformers.modeling_utils import load_state_dict

from dfusion.errors import UserError
from dfusion.rewards.published import batches, published

HUB, FILE = "zai-org/ImageReward", "ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"
LONGEST = 35  # tokens of a prompt; what is beyond is not seen
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw scores in its training data
COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "encoder_hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "is_decoder": True,  # transformers' word for having cross-attention
}
# From the checkpoint's names to ours, one after the other.
NAMES = (
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "mlp."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^vision\.blocks\.(\d+)\.norm", r"vision.encoder.layers.\1.layer_norm"),
    (r"^vision\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^vision\.blocks\.(\d+)\.attn\.", r"vision.encoder.layers.\1.self_attn."),
    (r"^vision\.blocks\.(\d+)\.", r"vision.encoder.layers.\1."),
)


class Network(nn.Module):
    """The score of an image and a text."""

    def __init__(self, vision: Mapping[str, object], text: Mapping[str, object]) -> None:
        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        self.text = BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False)
        self.mlp = nn.Sequential(  # without activations in between
            *(nn.Linear(self.text.config.hidden_size, 1024), nn.Dropout(0.2)),
            *(nn.Linear(1024, 128), nn.Dropout(0.2)),
            *(nn.Linear(128, 64), nn.Dropout(0.1)),
            *(nn.Linear(64, 16), nn.Linear(16, 1)),
        )

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """pixels: (N, 3, h, w). ids, mask: (N, L). Returns (N,)."""
        image = self.vision(pixel_values=pixels).last_hidden_state
        text = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], device=image.device),
            is_decoder=False,  # tokens see those after them, too
        ).last_hidden_state
        return (self.mlp(text[:, 0].float())[:, 0] - MEAN) / STD

    def read(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a published checkpoint. Raises UserError where some are missing."""
        missing, _ = self.load_state_dict(
            {renamed(name): value for name, value in state.items()}, strict=False
        )
        if missing := [name for name in missing if not name.endswith("position_ids")]:
            raise UserError(f"{FILE}: has no {missing[0]}; is it the published checkpoint?")


def renamed(name: str) -> str:
    """Our name of a weight of the published checkpoint."""
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


class ImageReward:
    """The network's score of each image and prompt."""

    def __init__(self, device: torch.device) -> None:
        self._network = Network(VISION, TEXT)
        with published("IMAGEREWARD", HUB) as found:
            local = Path(found).exists()
            path = Path(found) / FILE if local else hf_hub_download(found, FILE)
            self._network.read(load_state_dict(path))
            self._tokenizer = BertTokenizer.from_pretrained(found if local else TOKENIZER)
        self._network.eval().requires_grad_(False).to(device)
        self._device, size = device, VISION["image_size"]
        self._pixels = v2.Compose(
            [
                v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
                v2.CenterCrop(size),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(*COLOURS),
            ]
        )

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        parts = []
        for part in batches(len(images)):
            tokens = self._tokenizer(
                list(prompts[part]),
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            ).to(self._device)
            pixels = torch.stack([self._pixels(image.convert("RGB")) for image in images[part]])
            scores = self._network(
                pixels.to(self._device), tokens["input_ids"], tokens["attention_mask"]
            )
            parts.append(scores.cpu())
        return torch.cat(parts)
