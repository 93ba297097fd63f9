"""GRPO: a policy gradient with advantages within a group (Shao et al. 2024, 2402.03300).

For images: Flow-GRPO (2505.05470) and DanceGRPO (2505.07818).
"""

from dataclasses import dataclass

from dfusion.method.losses.ddpo import DDPO


@dataclass(frozen=True)
class GRPO(DDPO):
    """DDPO's clipped surrogate with advantages normalised over the prompt's samples of this round.

    With train.pairs naive and pair.rule halves, each of a prompt's samples is used once: all are
    either a reference or a base.
    """

    grouped = True
