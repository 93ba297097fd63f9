"""Algorithm 1 of the paper."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfusion.api.pipeline import DFusionPipeline
from dfusion.api.samples import FusedPair, Sample, adopt, pair, score
from dfusion.api.trainer import DFusionTrainer
from dfusion.rewards.contract import Reward


@dataclass(frozen=True)
class Round:
    """A finished round: its samples, its fused pairs, and the metrics of each optimiser step."""

    number: int
    samples: list[Sample]
    pairs: list[FusedPair]
    updates: list[dict[str, Any]]


def algorithm_1(
    pipe: DFusionPipeline,
    trainer: DFusionTrainer,
    prompts: Sequence[str],
    items: Mapping[str, Sequence[str | int]],
    reward: Reward,
    *,
    rounds: int,
    images_per_prompt: int,
    seed: int = 42,
    adoption_threshold: float = 1.0,
    sampling: Mapping[str, Any] | None = None,
    fusion: Mapping[str, Any] | None = None,
) -> Iterator[Round]:
    """Train a policy on its own samples of the prompts; yields each round once it is finished.

    sampling, fusion: further arguments of `DFusionPipeline.sample` and `fuse`.
    """
    for k in range(rounds):
        samples = pipe.sample(
            prompts, items, seed, images_per_prompt=images_per_prompt, round=k, **(sampling or {})
        )
        samples = score(samples, reward)
        pairs = pair(samples)  # each of the better half with one of the worse half
        targets = score(pipe.fuse(pairs, **(fusion or {})), reward)  # Eq. 4 and 5
        preferences = adopt(targets, adoption_threshold)  # Eq. 7
        updates = trainer.train_on(preferences)  # Eq. 6, 8 or 9
        yield Round(k, samples, targets, updates)
