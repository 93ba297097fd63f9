"""Rewards by name: functions from images and prompts to scores."""

from collections.abc import Callable

import numpy as np
import torch

from dfusion.errors import UserError
from dfusion.rewards.clip import clip_reward
from dfusion.rewards.contract import Reward
from dfusion.settings.own import own
from dfusion.settings.schema import Eval

HUMAN = "human"  # scores that people give in the browser: dfusion.view


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
    """The reward that a flag names: one of REWARDS, or your own as "package.module:name".

    Yours takes (images, prompts) and returns one score each; a class is made with the device first.
    Raises UserError.
    """
    if settings.reward == HUMAN:
        raise UserError(
            "--config.eval.reward human: people give these scores in the browser; run "
            "dfusion view data, and leave out --config.eval.in_process"
        )
    if settings.reward in REWARDS:
        return REWARDS[settings.reward](settings, device)
    found = own("eval.reward", settings.reward, [*REWARDS, HUMAN])
    return found(device) if isinstance(found, type) else found


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


REWARDS: dict[str, Callable[[Eval, torch.device], Reward]] = {"clip": clip_reward}
