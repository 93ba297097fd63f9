"""Prompt, item and mask files; and checks of every flag before a model loads."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dfusion.errors import UserError
from dfusion.fusion import FusionPlan
from dfusion.lora import targets_of
from dfusion.losses import RATIOS
from dfusion.masks import MERGES
from dfusion.objective import METHODS, REFERENCES, parse_weights
from dfusion.pairing import ADOPTIONS, RULES
from dfusion.prompts import Prompt, join, occurrences
from dfusion.sampling import STORE_DTYPES
from dfusion.settings import Settings
from dfusion.steps import parse_steps
from dfusion.tracking import TRACKERS
from dfusion.transitions import SOURCES
from dfusion.tuning import TUNES
from diffusers_patched import PARTS, LayerTable

_NAME = re.compile(r"^[A-Za-z0-9][\w.+-]*$")


def load_prompts(settings: Settings) -> tuple[Prompt, ...]:
    """The prompts of a run with items and thresholds. Raises UserError naming the flag."""
    if settings.prompt_file:
        texts = _prompt_list(settings.prompt_file)
    else:
        texts = [settings.prompt]
    if settings.item_idx_file:
        flag = f"--config.item_idx_file {settings.item_idx_file}"
        items = _by_prompt(flag, settings.item_idx_file, (str, int))
    elif settings.prompt_file:
        raise UserError("--config.item_idx_file: needed with --config.prompt_file; name the items")
    else:
        flag = "--config.item_idx"
        names = [name.strip() for name in settings.item_idx.strip("()[]").split(",")]
        items = {settings.prompt: [int(n) if n.isdigit() else n for n in names if n]}
    if settings.mask_thr_file:
        mask_flag = f"--config.mask_thr_file {settings.mask_thr_file}"
        thresholds: Any = _by_prompt(mask_flag, settings.mask_thr_file, (int, float, type(None)))
    else:
        thresholds = _threshold(settings.mask_thr)
    prompts = join(texts, items, thresholds, flag)
    for prompt in prompts:
        for item in prompt.items:
            occurrences(prompt.text, item.name)  # raises where the prompt lacks it
    return prompts


def _read(flag: str, path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{flag}: cannot be read ({error.strerror}); give a JSON file") from error
    except ValueError as error:
        raise UserError(f"{flag}: not valid JSON ({error})") from error


def _prompt_list(path: str) -> list[str]:
    flag = f"--config.prompt_file {path}"
    texts = _read(flag, path)
    good = isinstance(texts, list) and texts and all(isinstance(t, str) and t for t in texts)
    if not good:
        raise UserError(f"{flag}: must be a JSON list of prompts, at least one, none empty")
    twice = sorted({t for t in texts if texts.count(t) > 1})
    if twice:
        raise UserError(f"{flag}: '{twice[0]}' is listed twice; list each prompt once")
    return texts


def _by_prompt(flag: str, path: str, kinds: tuple[type, ...]) -> dict[str, list]:
    value = _read(flag, path)
    if not isinstance(value, dict):
        raise UserError(f"{flag}: must be a JSON object {{prompt: [...]}}")
    for prompt, row in value.items():
        plain = isinstance(row, list) and all(
            isinstance(v, kinds) and not isinstance(v, bool) for v in row
        )
        if not plain:
            raise UserError(f"{flag}: '{prompt}' must have a list, one entry for each item")
    return value


def _threshold(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--config.mask_thr '{text}': give a number, or auto") from None


def check(settings: Settings) -> None:
    """Refuse what can be refused without a model. Raises UserError naming the flag."""
    s = settings
    _one_of("device", s.device, ("auto", "cpu", "cuda", "mps"))
    _one_of("mixed_precision", s.mixed_precision, ("auto", "no", "fp16", "bf16"))
    _one_of("sample.store_dtype", s.sample.store_dtype, STORE_DTYPES)
    _one_of("mask.merge", s.mask.merge, MERGES)
    _one_of("pair.rule", s.pair.rule, RULES)
    _one_of("pair.adoption", s.pair.adoption, ADOPTIONS)
    _at_least("seed", s.seed, 0)
    _at_least("dev_id", s.dev_id, 0)
    _at_least("sample.num_steps", s.sample.num_steps, 1)
    _at_least("sample.batch_size", s.sample.batch_size, 1)
    _at_least("sample.num_batches_per_epoch", s.sample.num_batches_per_epoch, 1)
    _at_least("fusion.batch_size", s.fusion.batch_size, 1)
    _at_least("eval.batch_size", s.eval.batch_size, 1)
    _at_least("train.begin_epoch", s.train.begin_epoch, 0)
    _at_least("train.num_epochs", s.train.num_epochs, s.train.begin_epoch + 1)
    _one_of("train.method", s.train.method, METHODS)
    _one_of("train.pairs", s.train.pairs, SOURCES)
    _one_of("train.ratio", s.train.ratio, RATIOS)
    _check_training(s)
    if not 0 < s.sample.eta <= 1:
        raise UserError(f"--config.sample.eta {s.sample.eta}: must be above 0 and at most 1")
    if s.eval.poll_seconds <= 0:
        raise UserError(f"--config.eval.poll_seconds {s.eval.poll_seconds}: must be above 0")
    if s.images_per_prompt < 2:
        raise UserError(
            "--config.sample.num_batches_per_epoch: one image per prompt makes no pair; ask for "
            "two or more batches, or a larger --config.sample.batch_size"
        )
    try:
        parse_steps(s.fusion.steps, s.sample.num_steps)
    except ValueError as error:
        raise UserError(f"--config.fusion.steps: {error}") from error
    for part in _parts(s.fusion.parts):
        _one_of("fusion.parts", part, PARTS)
    if not _parts(s.fusion.parts):
        raise UserError(f"--config.fusion.parts: name at least one of {', '.join(PARTS)}")
    for name, value in (
        ("sample.guidance_scale", s.sample.guidance_scale),
        ("pair.adoption_threshold", s.pair.adoption_threshold),
        ("train.dpok_alpha", s.train.dpok_alpha),
        ("train.dpok_beta", s.train.dpok_beta),
    ):
        if not math.isfinite(value):
            raise UserError(f"--config.{name} {value}: must be a finite number")


def _check_training(s: Settings) -> None:
    """The flags that only training reads."""
    train = s.train
    _one_of("tracker", s.tracker, TRACKERS)
    _one_of("train.tune", train.tune, TUNES)
    _one_of("train.reference", train.reference, REFERENCES)
    counts = (
        *("num_inner_epochs", "updates_per_inner_epoch", "batch_size", "lora_rank", "lora_alpha"),
        *("compare_every", "num_checkpoint_limit"),
    )
    for name in counts:
        _at_least(f"train.{name}", getattr(train, name), 1)
    _at_least("train.compare_images", train.compare_images, 0)
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
    if not targets_of(train.lora_targets):
        raise UserError("--config.train.lora_targets: name at least one module, e.g. to_q,to_v")
    given = s.resume_from not in ("", "latest") and Path(s.resume_from) / "state.json"
    if given and not given.exists():
        raise UserError(
            f"--config.resume_from {s.resume_from}: no checkpoint there; give 'latest' or a folder "
            "such as data/<exp>/checkpoints/epoch3"
        )


def check_names(settings: Settings, several: bool = False) -> list[str]:
    """The experiment's name(s). Raises UserError for a name that is no plain folder name."""
    names = [n.strip() for n in settings.exp_name.split(",") if n.strip()]
    if not several and len(names) != 1:
        raise UserError("--config.exp_name: name the experiment, e.g. --config.exp_name test")
    for name in names:
        if not _NAME.match(name):
            raise UserError(
                f"--config.exp_name '{name}': it names a folder; use letters, digits and . _ + -"
            )
    return names


def plan_of(settings: Settings, layers: LayerTable) -> tuple[FusionPlan, frozenset[int]]:
    """The fusion plan and the mask's layers, for a UNet. Raises UserError naming the flag."""
    chosen = {}
    for flag, text in (("fusion", settings.fusion.layers), ("mask", settings.mask.layers)):
        try:
            chosen[flag] = layers.parse(text)
        except ValueError as error:
            raise UserError(f"--config.{flag}.layers: {error}") from error
    grids = {layers.grids[layer] for layer in chosen["mask"]}
    if len(grids) != 1:
        raise UserError(
            f"--config.mask.layers '{settings.mask.layers}': must be layers of one grid, at least "
            f"one; this UNet's grids are {dict(enumerate(layers.grids))}"
        )
    plan = FusionPlan(
        layers=chosen["fusion"],
        steps=parse_steps(settings.fusion.steps, settings.sample.num_steps),
        parts=frozenset(_parts(settings.fusion.parts)),
        masked=settings.fusion.masked,
        merge=settings.mask.merge,
    )
    return plan, chosen["mask"]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _one_of(flag: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise UserError(f"--config.{flag} '{value}': choose from {', '.join(choices)}")


def _at_least(flag: str, value: int, low: int) -> None:
    if value < low:
        raise UserError(f"--config.{flag} {value}: must be at least {low}")
