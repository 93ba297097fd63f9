"""Checks that a round on disk was made with the settings of the current run.

A run checks every round that it will use before it writes anything. Each stage checks again.
"""

from typing import Any

from dfusion.errors import UserError
from dfusion.method.prompts import Prompt
from dfusion.storage.experiment import Round

GO_BACK = "go back to those, or choose another --config.exp_name"
GO_BACK_OR_PAIR = (
    "go back to those, choose another --config.exp_name, or delete pairs.json, targets, "
    "target_images and eval/target_images.json there"
)


def check_samples(
    round_: Round, made_with: dict[str, Any], prompts: tuple[Prompt, ...], each: int
) -> None:
    """Raises UserError if the round was begun with other settings. each: samples per prompt."""
    round_.check_made_with("manifest.json", made_with, GO_BACK)
    planned = round_.sample_prompts()
    if len(planned) != len(prompts) * each:
        raise UserError(
            f"{round_.folder}: was begun with {len(planned)} images, not {len(prompts) * each}; "
            f"{GO_BACK}"
        )
    if planned != [p for p in prompts for _ in range(each)]:
        raise UserError(
            f"{round_.folder}: was begun with other prompts, items or thresholds; {GO_BACK}"
        )


def check_pairs(round_: Round, made_with: dict[str, Any]) -> None:
    """Raises UserError if the round was paired or fused with other settings."""
    round_.check_made_with("pairs.json", made_with, GO_BACK_OR_PAIR)
