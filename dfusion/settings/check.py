"""Checks of every flag before a model loads, and before anything slow is imported."""

import re
from pathlib import Path

from dfusion.errors import UserError
from dfusion.method.pairing import per_prompt
from dfusion.method.prompts import Prompt
from dfusion.settings.own import own
from dfusion.settings.plain_text import names_of
from dfusion.settings.plain_values import flat
from dfusion.settings.prompt_files import load_prompts
from dfusion.settings.reward_text import terms_of
from dfusion.settings.schema import SETTINGS, Settings
from dfusion.settings.steps import MOST_STEPS, parse_steps, parse_weights
from dfusion.storage.formats import MOST

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
LONGEST_NAME = 255  # bytes, of a file or folder


def check_sampling(settings: Settings) -> tuple[Prompt, ...]:
    """Every check of run_sample.py that needs no model; returns the prompts. Raises UserError."""
    check(settings)
    check_names(settings)
    _check_own("pair.rule", settings.pair.rule)
    prompts = load_prompts(settings)
    samples = len(prompts) * max(settings.images_per_prompt, settings.train.compare_images)
    if samples > MOST:
        raise UserError(
            f"--config.sample.num_batches_per_epoch: {len(prompts)} prompts make {samples} images "
            f"a round; at most {MOST}"
        )
    return prompts


def check_training(settings: Settings) -> tuple[Prompt, ...]:
    """Every check of run_train.py that needs no model; returns the prompts. Raises UserError."""
    prompts = check_sampling(settings)
    _check_own("train.method", settings.train.method)
    updates = settings.train.updates_per_inner_epoch
    pairs = len(prompts) * per_prompt(settings.images_per_prompt, settings.pair.rule)
    if pairs < updates and ":" not in settings.pair.rule:  # your own rule may make more
        raise UserError(
            f"--config.train.updates_per_inner_epoch {updates}: {len(prompts)} prompts of "
            f"{settings.images_per_prompt} images make {pairs} pairs a round, fewer than optimiser "
            "steps; ask for fewer steps, or for more images or prompts"
        )
    return prompts


def check_scoring(settings: Settings) -> list[str]:
    """Every check of run_eval.py that needs no model; returns the experiments' names."""
    check(settings)
    return check_names(settings, several=True)


def check(settings: Settings) -> None:
    """Check each flag by itself, independently of the command. Raises UserError."""
    for name, value in flat(settings.to_dict()).items():
        SETTINGS[name].check(f"--config.{name}", value)
    _check_rewards(settings)
    _check_rounds(settings)
    _check_steps(settings)
    _check_places(settings)
    check_targets("--config.train.lora_targets", settings.train.lora_targets)


def _check_own(flag: str, name: str) -> None:
    """What a flag names as module:name can be imported."""
    if ":" in name:
        own(flag, name, SETTINGS[flag].words)


def _check_rewards(settings: Settings) -> None:
    """Check what can be said of rewards without importing them."""
    named = terms_of("eval.reward", settings.eval.reward)
    watching = terms_of("eval.watch", settings.eval.watch) if settings.eval.watch else []
    human = "human" in {term.name for term in (*named, *watching)}
    if human and (len(named) > 1 or watching):
        raise UserError(
            "--config.eval.reward human: people's scores cannot be combined with others; leave "
            "out --config.eval.watch, and name no other reward"
        )


def _check_rounds(settings: Settings) -> None:
    first, end = settings.train.begin_epoch, settings.train.num_epochs
    if end <= first:
        raise UserError(
            f"--config.train.num_epochs {end}: must be at least {first + 1}, as "
            f"--config.train.begin_epoch is {first}"
        )
    if settings.images_per_prompt < 2:
        raise UserError(
            "--config.sample.num_batches_per_epoch: one image per prompt makes no pair; ask for "
            "two or more batches, or a larger --config.sample.batch_size"
        )


def _check_steps(settings: Settings) -> None:
    """Check that flags which list denoising steps fit the number of steps."""
    steps = settings.sample.num_steps
    try:
        parse_steps(settings.fusion.steps, steps)
    except ValueError as error:
        raise UserError(f"--config.fusion.steps: {error}") from error
    check_weights("--config.train.step_weights", settings.train.step_weights, steps)


def check_weights(name: str, text: str, steps: int = MOST_STEPS) -> None:
    """Raise UserError if these are no weights of `steps` denoising steps; see parse_weights."""
    try:
        parse_weights(text, steps)
    except ValueError as error:
        raise UserError(f"{name} '{text}': {error}") from error


def check_targets(name: str, text: str) -> None:
    """Raise UserError if no module to put LoRA on is named."""
    if not names_of(text):
        raise UserError(f"{name}: name at least one module, e.g. to_q,to_v")


def _check_places(settings: Settings) -> None:
    for name in ("save_path", "resume_from", "samples_from"):
        place = getattr(settings, name)
        if any(len(part.encode()) > LONGEST_NAME for part in Path(place).parts):
            raise UserError(f"--config.{name} '{place}': longer than any disk allows; shorten it")
    resumed = settings.resume_from
    if resumed not in ("", "latest") and not (Path(resumed) / "state.json").exists():
        raise UserError(
            f"--config.resume_from {resumed}: no checkpoint there; give 'latest' or a folder "
            "such as data/<exp>/checkpoints/epoch3"
        )


def check_names(settings: Settings, several: bool = False) -> list[str]:
    """The experiment's name(s). Raises UserError for one that is not a plain folder name."""
    names = names_of(settings.exp_name)
    if not several and len(names) != 1:
        raise UserError("--config.exp_name: name the experiment, e.g. --config.exp_name test")
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            raise UserError(
                f"--config.exp_name '{name}': not a folder name; use letters, digits and . _ + -"
            )
    return names
