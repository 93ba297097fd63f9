"""What a reward is: a function of images and their prompts.

    def score(images, prompts):  # PIL images, strings
        return [...]  # one number for each image; higher is better

A call has images of any prompts. A reward whose scores of an image depend on the other images of
its prompt, such as one that ranks them, has the attribute `whole_groups = True`. Each of its calls
then has all images of one prompt and no others.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfusion.errors import UserError

Scores = Tensor | np.ndarray | Sequence[float]
Reward = Callable[[Sequence[Image.Image], Sequence[str]], Scores]


def sees_groups(reward: Reward) -> bool:
    """Whether each call must have all images of one prompt."""
    return bool(getattr(reward, "whole_groups", False))


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
