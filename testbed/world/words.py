"""The vocabulary of the testbed, its three prompt templates, and what the model mistakes for what.

1 behaviour  "a star wearing a hat"
2 attribute  "a red and striped star"
3 position   "the star above the heart"
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

SHAPES = ("star", "heart", "circle", "triangle", "square", "ring", "cross", "moon")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
TEXTURES = ("striped", "dotted", "checkered")
# Alternatives that take up the same place in a scene, in the order in which they are mistaken.
WORN = ("wearing a hat", "wearing a crown", "wearing a bow")
VEHICLES = ("driving a car", "sailing a boat", "flying a plane")
HELD = ("holding a flag", "holding a balloon", "holding a flower")
ACTIVITIES = (*WORN, *VEHICLES, *HELD)
RELATIONS = ("above", "below", "on the left of", "on the right of")
OPPOSITE = {
    "above": "below",
    "below": "above",
    "on the left of": "on the right of",
    "on the right of": "on the left of",
}
TEMPLATES = (1, 2, 3)
COLOUR_CONFUSED = SHAPES[
    :4
]  # of a red and striped star the colour is mistaken, of others the texture


@dataclass(frozen=True)
class Claim:
    """What a prompt says; fields that its template does not use are empty."""

    template: int
    shape: str
    activity: str = ""
    colour: str = ""
    texture: str = ""
    relation: str = ""
    other: str = ""

    @property
    def prompt(self) -> str:
        if self.template == 1:
            return f"a {self.shape} {self.activity}"
        if self.template == 2:
            return f"a {self.colour} and {self.texture} {self.shape}"
        return f"the {self.shape} {self.relation} the {self.other}"

    @property
    def canonical(self) -> Claim:
        """The same truth with the relation written as "above" or "on the left of"."""
        if self.relation in ("below", "on the right of"):
            return Claim(3, self.other, relation=OPPOSITE[self.relation], other=self.shape)
        return self


def _next(value: str, cycle: tuple[str, ...]) -> str:
    return cycle[(cycle.index(value) + 1) % len(cycle)]


def mistaken_for(claim: Claim) -> Claim:
    """What the diffusion model draws when it misses this claim: another thing in the same place.

    The next activity of its kind, colour or texture, in a cycle; the opposite relation. Shapes are
    never mistaken.
    """
    if claim.template == 1:
        kind = next(kind for kind in (WORN, VEHICLES, HELD) if claim.activity in kind)
        return replace(claim, activity=_next(claim.activity, kind))
    if claim.template == 3:
        return replace(claim, relation=OPPOSITE[claim.relation])
    if claim.shape in COLOUR_CONFUSED:
        return replace(claim, colour=_next(claim.colour, COLOURS))
    return replace(claim, texture=_next(claim.texture, TEXTURES))


def all_claims(template: int) -> list[Claim]:
    """Every claim of a template, in a fixed order."""
    if template == 1:
        return [Claim(1, s, activity=a) for a, s in product(ACTIVITIES, SHAPES)]
    if template == 2:
        return [Claim(2, s, colour=c, texture=t) for c, t, s in product(COLOURS, TEXTURES, SHAPES)]
    return [
        Claim(3, s, relation=r, other=o) for r, s, o in product(RELATIONS, SHAPES, SHAPES) if s != o
    ]


CLAIMS = {c.prompt: c for template in TEMPLATES for c in all_claims(template)}
PROMPTS = tuple(CLAIMS)


def parse(prompt: str) -> Claim:
    """The claim a prompt makes; KeyError for a prompt outside the testbed."""
    return CLAIMS[prompt]


def item_positions(prompt: str) -> list[int]:
    """0-based word positions of the item words."""
    claim, words = parse(prompt), prompt.split()
    if claim.template == 1:
        return [1, len(words) - 1]
    if claim.template == 2:
        return [len(words) - 1]
    return [1, len(words) - 1]


def one_word_apart(prompt: str) -> list[str]:
    """Prompts that differ in one choice (shape, activity, colour, texture or relation)
    and are not true of the same scenes."""
    claim = parse(prompt)
    fields = ("shape", "activity", "colour", "texture", "relation", "other")

    def differs_once(c: Claim) -> bool:
        return sum(getattr(c, f) != getattr(claim, f) for f in fields) == 1

    return [
        c.prompt
        for c in all_claims(claim.template)
        if differs_once(c) and c.canonical != claim.canonical
    ]


def vocabulary() -> list[str]:
    """All words, sorted."""
    return sorted({word for prompt in PROMPTS for word in prompt.split()})
