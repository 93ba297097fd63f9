"""Prompts with their items and thresholds, from flags and files."""

from pathlib import Path
from typing import Any

from dfusion.errors import UserError
from dfusion.method.prompts import Prompt, join, occurrences
from dfusion.settings.plain_text import check_text, names_of
from dfusion.settings.schema import Settings
from dfusion.storage.strict_json import load_json

Thresholds = dict[str, list[float | None]] | float | None


def load_prompts(settings: Settings) -> tuple[Prompt, ...]:
    """The prompts of a run with items and thresholds. Raises UserError naming the flag."""
    texts = _prompt_list(settings.prompt_file) if settings.prompt_file else [settings.prompt]
    prompt_flag = f"--config.prompt_file {settings.prompt_file}"
    for text in texts:
        check_text(prompt_flag if settings.prompt_file else "--config.prompt", text)
    items, flag = _items(settings)
    prompts = join(texts, items, _thresholds(settings), flag)
    for prompt in prompts:
        _check_items(prompt, flag)
    return prompts


def item_flag(settings: Settings) -> str:
    """The flag that names the items, as errors quote it."""
    file = settings.item_idx_file
    return f"--config.item_idx_file {file}" if file else f"--config.item_idx {settings.item_idx}"


def _items(settings: Settings) -> tuple[dict[str, list[str | int]], str]:
    flag = item_flag(settings)
    if settings.item_idx_file:
        return _by_prompt(flag, settings.item_idx_file, (str, int)), flag
    if settings.prompt_file:
        raise UserError("--config.item_idx_file: needed with --config.prompt_file; name the items")
    names = names_of(settings.item_idx.strip("()[]"))
    plain = [int(n) if n.isascii() and n.isdigit() and len(n) < 10 else n for n in names]
    return {settings.prompt: plain}, flag


def _check_items(prompt: Prompt, flag: str) -> None:
    """Check that each item is in the prompt and named only once: XOR would cancel a second one."""
    seen: list[list[list[int]]] = []
    for item in prompt.items:
        try:
            places = occurrences(prompt.text, item.name)
        except UserError as error:
            raise UserError(f"{flag}: {error}") from error
        if places in seen:
            raise UserError(f"{flag}: '{prompt.text}' has the item '{item.name}' twice; name once")
        seen.append(places)


def _thresholds(settings: Settings) -> Thresholds:
    if not settings.mask_thr_file:
        return _threshold(settings.mask_thr)
    flag = f"--config.mask_thr_file {settings.mask_thr_file}"
    found = _by_prompt(flag, settings.mask_thr_file, (int, float, type(None)))
    for text, row in found.items():
        for value in row:
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{flag}: '{text}' has {value}; give 0 to 1, or null for Otsu's")
    return found


def _threshold(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"--config.mask_thr '{text}': give a number, or auto") from None
    if not 0 <= value <= 1:
        raise UserError(f"--config.mask_thr '{text}': give a number from 0 to 1, or auto")
    return value


def _read(flag: str, path: str) -> Any:
    try:
        return load_json(Path(path))
    except OSError as error:
        raise UserError(f"{flag}: cannot be read ({error.strerror}); give a JSON file") from error
    except ValueError as error:
        raise UserError(f"{flag}: not valid JSON ({error}); fix the file") from error


def _prompt_list(path: str) -> list[str]:
    flag = f"--config.prompt_file {path}"
    texts = _read(flag, path)
    good = isinstance(texts, list) and texts
    if not good or not all(isinstance(t, str) and t.strip() for t in texts):
        raise UserError(f"{flag}: must be a JSON list of prompts, at least one, none empty")
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise UserError(f"{flag}: '{text}' is listed twice; list each prompt once")
        seen.add(text)
    return texts


def _by_prompt(flag: str, path: str, kinds: tuple[type, ...]) -> dict[str, list[Any]]:
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
