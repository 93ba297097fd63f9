"""The text of --config.eval.reward and --config.eval.watch: a reward, or a weighted sum of several.

clip
0.5*clip + 2*mine:score
"""

import math
from dataclasses import dataclass

from dfusion.errors import UserError


@dataclass(frozen=True)
class Term:
    """A reward of a sum, by name."""

    weight: float
    name: str


def is_sum(text: str) -> bool:
    """Whether the text is a weighted sum, maybe of one reward only."""
    return "+" in text or "*" in text


def terms_of(flag: str, text: str) -> list[Term]:
    """The rewards that the text names, with their weights; without one, the weight is 1.

    Raises UserError naming the flag.
    """
    terms = [_term(flag, text, part) for part in text.split("+")]
    names = [term.name for term in terms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--config.{flag} '{text}': {twice[0]} appears twice; add up its weights")
    return terms


def _term(flag: str, text: str, part: str) -> Term:
    before, star, after = part.partition("*")
    try:
        weight = float(before) if star else 1.0
    except ValueError:
        weight = math.nan
    name = (after if star else before).strip()
    if not name or "*" in name or not math.isfinite(weight):
        raise UserError(
            f"--config.{flag} '{text}': name a reward, or weigh several as in '0.5*clip + 2*mine:f'"
        )
    return Term(weight, name)
