"""Rewards by name: functions from images and prompts to scores."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfusion.errors import UserError, reason
from dfusion.models.hub import asked_once
from dfusion.settings.schema import Eval

FLAG = "--config.eval.model"
LOCAL = (
    "give a local weights file as --config.eval.pretrained, or local-dir:path/to/folder as "
    "--config.eval.model"
)
HUMAN = "human"  # scores that people give in the browser: dfusion.view

Scores = Tensor | np.ndarray | Sequence[float]
# (images, prompts) -> one number each; higher is better.
Reward = Callable[[Sequence[Image.Image], Sequence[str]], Scores]


def reward_name(settings: Eval) -> str:
    """The reward's name on disk: the reward and, for CLIP, its model."""
    if settings.reward != "clip":
        return settings.reward
    return ":".join(filter(None, ("clip", settings.model, settings.pretrained)))


def asked_for(settings: Eval) -> str | None:
    """The name of the reward that flags ask for; None if it is the default."""
    name = reward_name(settings)
    return None if name == reward_name(Eval()) else name


def load_reward(settings: Eval, device: torch.device) -> Reward:
    """The reward a flag names: one of REWARDS, or your own as "package.module:function".

    Your function takes (images, prompts) and returns one score each. Raises UserError.
    """
    if settings.reward == HUMAN:
        raise UserError(
            "--config.eval.reward human: people give these scores in the browser; run "
            "dfusion view data, and leave out --config.eval.in_process"
        )
    if settings.reward in REWARDS:
        return REWARDS[settings.reward](settings, device)
    module_name, _, function_name = settings.reward.partition(":")
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(REWARDS)
        raise UserError(
            f"--config.eval.reward '{settings.reward}': {error}; use {known} or module:function"
        ) from error


def as_numbers(values: object, count: int, name: str) -> list[float]:
    """What a reward returned (tensor, array or list) as plain numbers."""
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu()
    try:
        numbers = np.asarray(values, dtype=float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise UserError(f"--config.eval.reward {name}: gave no numbers ({error})") from error
    if len(numbers) != count:
        raise UserError(f"--config.eval.reward {name}: gave {len(numbers)} scores for {count}")
    return numbers.tolist()


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


REWARDS: dict[str, Callable[[Eval, torch.device], Reward]] = {"clip": clip_reward}
