"""Several rewards as one: their weighted sum."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from dfusion.rewards.contract import Reward, as_numbers, sees_groups


@dataclass(frozen=True)
class Part:
    """A reward of the sum. name: as it is written to disk."""

    weight: float
    name: str
    reward: Reward


class WeightedSum:
    """The sum of weight * reward over the parts. If one of them sees whole groups, all do."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.whole_groups = any(sees_groups(part.reward) for part in parts)

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        return self.total(self.parts(images, prompts))

    def parts(
        self, images: Sequence[Image.Image], prompts: Sequence[str]
    ) -> dict[str, list[float]]:
        """The scores that each part gives, by its name, without its weight."""
        return {
            part.name: as_numbers(part.reward(images, prompts), len(images), part.name)
            for part in self._parts
        }

    def total(self, parts: dict[str, list[float]]) -> list[float]:
        """The weighted sum of what `parts` returned."""
        weights = [part.weight for part in self._parts]
        columns = zip(*parts.values(), strict=True)
        return [sum(w * v for w, v in zip(weights, c, strict=True)) for c in columns]
