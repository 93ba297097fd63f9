"""Checks of what a round's JSON files hold, from any source.

Numbers of samples and pairs become file names, so only whole numbers of a sane size are accepted:
no file can point outside its experiment's folder.
"""

from collections.abc import Mapping
from typing import Any

from dfusion.errors import UserError

MOST = 10**7  # samples of a round
LARGEST = 1e300  # of a score or threshold
REMEDY = "delete it to have it rebuilt"


def check_manifest(source: str, value: Mapping[str, Any]) -> None:
    """Raises UserError naming `source`."""
    prompts, samples, mean = (value.get(k) for k in ("prompts", "samples", "mean"))
    if not isinstance(value.get("made_with"), dict):
        raise _wrong(source, "made_with", value.get("made_with"))
    if not isinstance(prompts, list) or not all(map(_is_prompt, prompts)):
        raise _wrong(source, "prompts", prompts)
    if not isinstance(samples, list) or len(samples) > MOST:
        raise _wrong(source, "samples", samples)
    if not isinstance(mean, list | None) or not all(map(_is_pair, mean or ())):
        raise _wrong(source, "mean", mean)
    for place in samples:
        if not _is_index(place, len(prompts)):
            raise _wrong(source, "samples", place)


def check_pairs(source: str, value: Mapping[str, Any]) -> None:
    """Raises UserError naming `source`."""
    rows = value.get("pairs")
    if not isinstance(rows, list) or not isinstance(value.get("made_with"), dict):
        raise _wrong(source, "pairs", rows)
    for row in rows:
        good = isinstance(row, dict) and row.keys() == {"prompt", "reference", "base"}
        if not good or not isinstance(row["prompt"], str):
            raise _wrong(source, "pairs", row)
        if not all(_is_index(row[side], MOST) for side in ("reference", "base")):
            raise _wrong(source, "pairs", row)


def check_scores(source: str, value: Mapping[str, Any]) -> None:
    """Raises UserError naming `source`."""
    parts = value.get("parts", {})
    if not isinstance(value.get("reward"), str):
        raise _wrong(source, "reward", value.get("reward"))
    if not isinstance(parts, dict):
        raise _wrong(source, "parts", parts)
    for scores in (value.get("scores"), *parts.values()):
        if not isinstance(scores, dict):
            raise _wrong(source, "scores", scores)
        for name, score in scores.items():
            plain = name.isascii() and name.isdigit() and len(name) <= len(str(MOST))
            if not plain or not _is_number(score):
                raise _wrong(source, "scores", {name: score})


def check_adoption(source: str, value: Mapping[str, Any]) -> None:
    """Raises UserError naming `source`."""
    rows = value.get("pairs")
    if not isinstance(rows, list):
        raise _wrong(source, "pairs", rows)
    for row in rows:
        numbers = isinstance(row, dict) and all(
            _is_number(row.get(side)) for side in ("base", "reference", "target")
        )
        if not numbers or not isinstance(row.get("adopted"), bool):
            raise _wrong(source, "pairs", row)


def _is_prompt(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"text", "items"}:
        return False
    items = value["items"]
    return isinstance(value["text"], str) and isinstance(items, list) and all(map(_is_item, items))


def _is_item(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"name", "threshold"}:
        return False
    name, threshold = value["name"], value["threshold"]
    named = isinstance(name, str) or _is_index(name, MOST)
    return named and (threshold is None or _is_number(threshold))


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_index(value: object, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count


def _is_number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < LARGEST  # not so for NaN


def _wrong(source: str, name: str, value: object) -> UserError:
    return UserError(f"{source}: '{name}' cannot be {str(value)[:100]!r}; {REMEDY}")
