"""Checks of every flag before a model loads, and before anything slow is imported."""

import math
import re
from pathlib import Path

from dfusion.errors import UserError
from dfusion.method.pairing import ADOPTIONS, RULES, per_prompt
from dfusion.method.prompts import Prompt
from dfusion.settings.choices import (
    KEEPS,
    MERGES,
    METHODS,
    PARTS,
    PLACES,
    RATIOS,
    REFERENCES,
    SOURCES,
    STORE_DTYPES,
    TRACKERS,
    TUNES,
)
from dfusion.settings.prompt_files import load_prompts
from dfusion.settings.rules import at_least, check_text, finite, one_of
from dfusion.settings.schema import AUTO, Settings, check_setting, flat, names_of
from dfusion.settings.steps import parse_steps, parse_weights
from dfusion.storage.formats import MOST

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
LONGEST_NAME = 255  # bytes, of a file or folder
DAY = 86400  # seconds


def check_sampling(settings: Settings) -> tuple[Prompt, ...]:
    """All that run_sample.py can refuse without a model; returns the prompts. Raises UserError."""
    check(settings)
    check_names(settings)
    prompts = load_prompts(settings)
    samples = len(prompts) * max(settings.images_per_prompt, settings.train.compare_images)
    if samples > MOST:
        raise UserError(
            f"--config.sample.num_batches_per_epoch: {len(prompts)} prompts make {samples} images "
            f"a round; at most {MOST}"
        )
    return prompts


def check_training(settings: Settings) -> tuple[Prompt, ...]:
    """All that run_train.py can refuse without a model; returns the prompts. Raises UserError."""
    prompts = check_sampling(settings)
    each, updates = per_prompt(settings.images_per_prompt), settings.train.updates_per_inner_epoch
    pairs = len(prompts) * each
    if pairs < updates:
        raise UserError(
            f"--config.train.updates_per_inner_epoch {updates}: {len(prompts)} prompts of "
            f"{settings.images_per_prompt} images make {pairs} pairs a round, fewer than optimiser "
            "steps; ask for fewer steps, or for more images or prompts"
        )
    return prompts


def check_scoring(settings: Settings) -> list[str]:
    """All that run_eval.py can refuse without a model; returns the experiments' names."""
    check(settings)
    return check_names(settings, several=True)


def check(settings: Settings) -> None:
    """Refuse flags by themselves, whatever command they are for. Raises UserError."""
    s = settings
    _check_each(s)
    one_of("device", s.device, ("auto", "cpu", "cuda", "mps"))
    one_of("mixed_precision", s.mixed_precision, ("auto", "no", "fp16", "bf16"))
    one_of("sample.store_dtype", s.sample.store_dtype, STORE_DTYPES)
    one_of("mask.merge", s.mask.merge, MERGES)
    one_of("mask.place", s.mask.place, PLACES)
    one_of("pair.rule", s.pair.rule, RULES)
    one_of("pair.adoption", s.pair.adoption, ADOPTIONS)
    at_least("seed", s.seed, 0, most=2**63 - 1)
    at_least("dev_id", s.dev_id, 0)
    at_least("sample.num_steps", s.sample.num_steps, 1, most=1000)
    at_least("sample.batch_size", s.sample.batch_size, 1)
    at_least("sample.num_batches_per_epoch", s.sample.num_batches_per_epoch, 1)
    if s.sample.images_per_call != AUTO:
        at_least("sample.images_per_call", int(s.sample.images_per_call), 0)
    if s.fusion.batch_size != AUTO:
        at_least("fusion.batch_size", int(s.fusion.batch_size), 1)
    at_least("eval.batch_size", s.eval.batch_size, 1)
    at_least("train.begin_epoch", s.train.begin_epoch, 0)
    at_least("train.num_epochs", s.train.num_epochs, s.train.begin_epoch + 1)
    one_of("train.method", s.train.method, METHODS)
    one_of("train.pairs", s.train.pairs, SOURCES)
    one_of("train.ratio", s.train.ratio, RATIOS)
    _check_training(s)
    if not 0 < s.sample.eta <= 1:
        raise UserError(f"--config.sample.eta {s.sample.eta}: must be above 0 and at most 1")
    if not 0 < s.eval.poll_seconds <= DAY:
        raise UserError(
            f"--config.eval.poll_seconds {s.eval.poll_seconds}: must be above 0 and at most {DAY}"
        )
    if s.images_per_prompt < 2:
        raise UserError(
            "--config.sample.num_batches_per_epoch: one image per prompt makes no pair; ask for "
            "two or more batches, or a larger --config.sample.batch_size"
        )
    try:
        parse_steps(s.fusion.steps, s.sample.num_steps)
    except ValueError as error:
        raise UserError(f"--config.fusion.steps: {error}") from error
    for part in names_of(s.fusion.parts):
        one_of("fusion.parts", part, PARTS)
    if not names_of(s.fusion.parts):
        raise UserError(f"--config.fusion.parts: name at least one of {', '.join(PARTS)}")
    finite("sample.guidance_scale", s.sample.guidance_scale)
    finite("pair.adoption_threshold", s.pair.adoption_threshold)
    finite("train.dpok_alpha", s.train.dpok_alpha)
    finite("train.dpok_beta", s.train.dpok_beta)


def _check_each(s: Settings) -> None:
    """Every flag by itself: of its default's type, and plain text."""
    for name, value in flat(s.to_dict()).items():
        check_setting(f"--config.{name}", name, value)
        if isinstance(value, str):
            check_text(f"--config.{name}", value)
    for name in ("save_path", "resume_from", "samples_from"):
        place = getattr(s, name)
        if any(len(part.encode()) > LONGEST_NAME for part in Path(place).parts):
            raise UserError(f"--config.{name} '{place}': no disk has so long a name; shorten it")


def _check_training(s: Settings) -> None:
    """The flags that only training reads."""
    train = s.train
    one_of("tracker", s.tracker, TRACKERS)
    one_of("keep_trajectories", s.keep_trajectories, KEEPS)
    one_of("train.tune", train.tune, TUNES)
    one_of("train.reference", train.reference, REFERENCES)
    counts = (
        *("num_inner_epochs", "updates_per_inner_epoch", "batch_size", "lora_rank", "lora_alpha"),
        *("compare_every", "num_checkpoint_limit"),
    )
    for name in counts:
        if getattr(train, name) != AUTO:
            at_least(f"train.{name}", getattr(train, name), 1)
    at_least("train.compare_images", train.compare_images, 0)
    if not 0 < train.timestep_fraction <= 1:
        raise UserError(
            f"--config.train.timestep_fraction {train.timestep_fraction}: must be above 0 and at "
            "most 1"
        )
    for name in ("learning_rate", "beta", "max_grad_norm", "adv_clip_max", "adam_epsilon"):
        if not 0 < getattr(train, name) < math.inf:
            raise UserError(f"--config.train.{name} {getattr(train, name)}: must be above 0")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(train, name) < 1:
            raise UserError(f"--config.train.{name} {getattr(train, name)}: must be from 0 to 1")
    for name in ("kl_initial", "adam_weight_decay"):
        if not 0 <= getattr(train, name) < math.inf:
            raise UserError(f"--config.train.{name} {getattr(train, name)}: must not be below 0")
    if not 0 <= train.eps < 1:
        raise UserError(f"--config.train.eps {train.eps}: must be from 0 (no clipping) to below 1")
    try:
        weights = parse_weights(train.step_weights)
    except ValueError as error:
        raise UserError(f"--config.train.step_weights '{train.step_weights}': {error}") from error
    if weights and len(weights) != s.sample.num_steps:
        raise UserError(
            f"--config.train.step_weights: {len(weights)} weights for {s.sample.num_steps} steps; "
            "give one for each step, t = T first"
        )
    if not names_of(train.lora_targets):
        raise UserError("--config.train.lora_targets: name at least one module, e.g. to_q,to_v")
    given = s.resume_from not in ("", "latest") and Path(s.resume_from) / "state.json"
    if given and not given.exists():
        raise UserError(
            f"--config.resume_from {s.resume_from}: no checkpoint there; give 'latest' or a folder "
            "such as data/<exp>/checkpoints/epoch3"
        )


def check_names(settings: Settings, several: bool = False) -> list[str]:
    """The experiment's name(s). Raises UserError for a name that is no plain folder name."""
    names = names_of(settings.exp_name)
    if not several and len(names) != 1:
        raise UserError("--config.exp_name: name the experiment, e.g. --config.exp_name test")
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            raise UserError(
                f"--config.exp_name '{name}': it names a folder; use letters, digits and . _ + -"
            )
    return names
