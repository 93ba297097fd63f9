"""A loss of one's own, as `--config.train.method tests.losses:TrajectoryDPO` plugs it in."""

from dataclasses import dataclass

import torch

from dfusion.method.losses import Loss, Steps, Value


@dataclass(frozen=True)
class TrajectoryDPO(Loss):
    """Log-ratios are summed over a trajectory inside the sigmoid: no loss of single steps."""

    beta: float = 3.0
    whole_update = True

    def __call__(self, steps: Steps) -> Value:
        shift = steps.weight[:, None] * (steps.log_prob - steps.old)
        sums = shift.new_zeros(int(steps.pair.max()) + 1, 2).index_add(0, steps.pair, shift)
        return Value(-torch.nn.functional.logsigmoid(self.beta * (sums[:, 0] - sums[:, 1])).sum())
