"""CLIPScore (Hessel et al. 2021), the reward of the paper, by open_clip."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dfusion.errors import UserError, reason
from dfusion.models.hub import asked_once
from dfusion.rewards.contract import Reward
from dfusion.settings.schema import Eval

FLAG = "--config.eval.model"
LOCAL = (
    "give a local weights file as --config.eval.pretrained, or local-dir:path/to/folder as "
    "--config.eval.model"
)


def clip_reward(settings: Eval, device: torch.device) -> Reward:
    """CLIPScore without its scale: the cosine of image and text features (raw, -1 … 1).

    Text features are computed once for every prompt.
    """
    import open_clip

    name = settings.model
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise UserError(
                f"{FLAG}: {folder} has no open_clip_config.json; give an open_clip "
                "folder or a model name such as ViT-H-14"
            )
    weights = settings.pretrained
    local = name.startswith("local-dir:") or Path(weights).is_file()
    try:
        with asked_once(f"{FLAG} '{name}' with '{weights}'", LOCAL, local):
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=weights or None, device=device
            )
            tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{FLAG}: '{name}' with '{weights}' could not be loaded ({reason(error)}); {LOCAL}"
        ) from error
    model.eval().requires_grad_(False)
    texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def reward(images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        new = sorted(set(prompts) - texts.keys())
        if new:
            features = model.encode_text(tokenizer(new).to(device), normalize=True)
            texts.update(zip(new, features, strict=True))
        pixels = torch.stack([preprocess(image.convert("RGB")) for image in images]).to(device)
        features = model.encode_image(pixels, normalize=True)
        return (features * torch.stack([texts[p] for p in prompts])).sum(-1).float().cpu()

    return reward
