"""Who is fused with whom (Algorithm 1), and which targets are kept (Eq. 7). One rule a file."""

from dfusion.method.pairing.adoption import adopted
from dfusion.method.pairing.contract import Group, Pair, Rule
from dfusion.method.pairing.halves import halves
from dfusion.method.pairing.quarter import quarter
from dfusion.method.pairing.rules import RULES, pair, per_prompt

__all__ = ["RULES", "Group", "Pair", "Rule", "adopted", "halves", "pair", "per_prompt", "quarter"]
