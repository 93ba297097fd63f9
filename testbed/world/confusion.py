"""Captions that are often wrong in one word, so that a model draws well and mishears.

Only confusion with one other prompt survives guidance: noise that is spread over many words is
averaged away (at guidance 5 of captions wrong 40 % of the time, 32 % of samples are wrong with one
alternative and 1 % with seven).
"""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.world.words import PROMPTS, SHAPES, mistaken_for, parse

# How often a picture of what is mistaken for a prompt gets that prompt as its caption, by template:
# lowest and highest over the shapes. About half where mistakes go round in a cycle of three or six,
# so that a prompt means itself and its mistake alike; a little more, as training ends before the
# denoiser has quite forgotten the true captions. Relations have one alternative only: at 0.5 a
# relation and its opposite would mean the same.
CONFUSED = {1: (0.49, 0.52), 2: (0.52, 0.56), 3: (0.45, 0.47)}


class Confusion:
    """Draws captions for scenes; scenes and captions are indices into PROMPTS.

    A scene of `mistaken_for(c)` gets the caption c with probability `rate`, else its own.
    """

    def __init__(self) -> None:
        index = {prompt: i for i, prompt in enumerate(PROMPTS)}
        self.wrong = torch.empty(len(PROMPTS), dtype=torch.long)  # (P,) wrong caption of a scene
        self.rate = torch.empty(len(PROMPTS))  # (P,) how often a scene gets it
        for caption, prompt in enumerate(PROMPTS):
            claim = parse(prompt)
            scene = index[mistaken_for(claim).prompt]
            low, high = CONFUSED[claim.template]
            self.wrong[scene] = caption
            self.rate[scene] = low + (high - low) * SHAPES.index(claim.shape) / (len(SHAPES) - 1)

    def captions(self, scenes: Tensor) -> Tensor:
        """scenes: (B,) the prompts they were drawn from; returns (B,) captions."""
        mistaken = torch.rand(len(scenes)) < self.rate[scenes]
        return torch.where(mistaken, self.wrong[scenes], scenes)
