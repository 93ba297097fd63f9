"""Rules for what flags and files may hold, whatever they mean: types, plain text, sane numbers."""

import math
import unicodedata
from collections.abc import Iterable
from typing import Any

from dfusion.errors import UserError

LONGEST = 4000  # characters of a flag or prompt
MOST = 1_000_000  # of anything that is counted
_CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, line separators
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # of the reading order


def check_text(what: str, text: str) -> None:
    """Refuse what could not be shown as one line. what: the flag or file. Raises UserError."""
    for c in text:
        if unicodedata.category(c) in _CONTROL or unicodedata.bidirectional(c) in _TURNING:
            raise UserError(
                f"{what}: '{text}' has the character U+{ord(c):04X}; write plain text in one line"
            )
    if len(text) > LONGEST:
        raise UserError(f"{what}: '{text}' has {len(text)} characters; give at most {LONGEST}")


def kind_of(like: Any) -> str:
    """The type of a setting in words."""
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
    return kinds[type(like)]


def check_type(what: str, value: Any, like: Any) -> None:
    """Refuse a value of another type than `like`; a whole number may stand for a fraction."""
    wanted = (int, float) if isinstance(like, float) else type(like)
    if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(like, bool):
        raise UserError(f"{what} {value!r}: must be {kind_of(like)}")


def one_of(flag: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError naming the flag."""
    if value not in choices:
        raise UserError(f"--config.{flag} '{value}': choose from {', '.join(choices)}")


def at_least(flag: str, value: int, low: int, most: int = MOST) -> None:
    """low … most. Raises UserError naming the flag."""
    if value < low:
        raise UserError(f"--config.{flag} {value}: must be at least {low}")
    if value > most:
        raise UserError(f"--config.{flag} {value}: must be at most {most}")


def finite(flag: str, value: float) -> None:
    """Raises UserError naming the flag."""
    if not math.isfinite(value):
        raise UserError(f"--config.{flag} {value}: must be a finite number")
