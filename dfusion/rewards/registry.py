"""Rewards by name: functions from images and prompts to scores."""

from collections.abc import Callable
from dataclasses import replace

import torch

from dfusion.errors import UserError
from dfusion.rewards.clip import clip_reward
from dfusion.rewards.contract import Reward
from dfusion.rewards.weighted_sum import Part, WeightedSum
from dfusion.settings.own import own
from dfusion.settings.reward_text import is_sum, terms_of
from dfusion.settings.schema import Eval

HUMAN = "human"  # scores that people give in the browser: dfusion.view
FOLDERS = ("local-dir", "hf-hub")  # what open_clip's model names may begin with, before a colon


def reward_name(settings: Eval) -> str:
    """The reward's name on disk: with what its scores depend on, such as CLIP's model."""
    if not is_sum(settings.reward):
        return _name(settings.reward, settings)
    terms = terms_of("eval.reward", settings.reward)
    return " + ".join(f"{term.weight}*{_name(term.name, settings)}" for term in terms)


def _name(name: str, settings: Eval) -> str:
    if name == "clip":
        return ":".join(filter(None, ("clip", settings.model, settings.pretrained)))
    if name == "vlm":
        return f"vlm:{settings.vlm_model}:{settings.vlm_question}"
    return name


def watch_of(settings: Eval) -> Eval | None:
    """Settings whose reward is the scorer that training never sees; None if there is none."""
    return replace(settings, reward=settings.watch) if settings.watch else None


def asked_for(settings: Eval) -> str | None:
    """The name of the reward that flags ask for; None if it is the default."""
    name = reward_name(settings)
    return None if name == reward_name(Eval()) else name


def check_rewards(settings: Eval) -> None:
    """Refuse a reward or watch that no scorer could load. Raises UserError naming the flag.

    Your own are imported only if they are to score in this process: they may be installed nowhere
    but where the scorer runs.
    """
    for flag, text in (("eval.reward", settings.reward), ("eval.watch", settings.watch)):
        for term in terms_of(flag, text) if text else ():
            if term.name in (*REWARDS, HUMAN) or term.name.startswith("clip:"):
                continue
            module, _, attribute = term.name.partition(":")
            if not (module and attribute):
                raise UserError(
                    f"--config.{flag} '{text}': there is no reward '{term.name}'; choose from "
                    f"{', '.join((*REWARDS, HUMAN))}, or give package.module:name"
                )
            if settings.in_process:
                own(flag, term.name, REWARDS)


def load_reward(settings: Eval, device: torch.device) -> Reward:
    """The reward that a flag names: one of REWARDS, your own as "package.module:name", or a sum.

    Yours takes (images, prompts) and returns one score each; a class is made with the device first.
    Raises UserError.
    """
    if not is_sum(settings.reward):
        return _load(settings.reward, settings, device)
    return WeightedSum(
        [
            Part(term.weight, _name(term.name, settings), _load(term.name, settings, device))
            for term in terms_of("eval.reward", settings.reward)
        ]
    )


def _load(name: str, settings: Eval, device: torch.device) -> Reward:
    if name == HUMAN:
        raise UserError(
            "--config.eval.reward human: people give these scores in the browser; run "
            "dfusion view data, and leave out --config.eval.in_process"
        )
    if name.startswith("clip:"):
        model, pretrained = _clip_model(name.removeprefix("clip:"))
        return clip_reward(replace(settings, model=model, pretrained=pretrained), device)
    if name in REWARDS:
        return REWARDS[name](settings, device)
    found = own("eval.reward", name, [*REWARDS, HUMAN])
    return found(device) if isinstance(found, type) else found


def _clip_model(text: str) -> tuple[str, str]:
    """Model and weights of a CLIP reward's name on disk, after "clip:"."""
    if text.startswith(tuple(f"{word}:" for word in FOLDERS)):
        return text, ""
    model, _, pretrained = text.partition(":")
    return model, pretrained


# Those below import what they need when they are asked for.
def _pickscore(settings: Eval, device: torch.device) -> Reward:
    from dfusion.rewards.pickscore import PickScore

    return PickScore(device)


def _hpsv2(settings: Eval, device: torch.device) -> Reward:
    from dfusion.rewards.hpsv2 import HPSv2

    return HPSv2(device)


def _imagereward(settings: Eval, device: torch.device) -> Reward:
    from dfusion.rewards.image_reward import ImageReward

    return ImageReward(device)


def _vlm(settings: Eval, device: torch.device) -> Reward:
    from dfusion.rewards.vlm import vlm_reward

    return vlm_reward(settings)


REWARDS: dict[str, Callable[[Eval, torch.device], Reward]] = {
    "clip": clip_reward,
    "pickscore": _pickscore,
    "hpsv2": _hpsv2,
    "imagereward": _imagereward,
    "vlm": _vlm,
}
