"""FDFO: finite differences of the reward (McAllister et al. 2026, 2603.12893)."""

from dataclasses import dataclass

from torch import Tensor

from dfusion.method.losses.contract import ForwardLoss, Noised, Steps, Value

FLOOR = 1e-6  # added to mean e^2, as in the authors' code


@dataclass(frozen=True)
class FDFO(ForwardLoss):
    """Pulls the network's output along the difference of the two final latents.

    Of a pair, each image is the midpoint plus e, with e = (x0 - x0 of the other) / 2 and the sign
    of its own side. Its reward is that of the midpoint plus (A - A of the other) / 2. The finite
    difference of the reward along e is therefore the product of

        d = e / (mean e^2)   and   w = (A - A of the other) / 2.

    Velocity and noise point away from the image: an output lower by d, at all noise levels, ends
    in an image further along d. So the output's aim is theta_old's minus d, and

        r = exp(mean d^2 - mean (output - aim)^2)

    is 1 for theta_old and rises along -d. The loss is -(w r - |w| (r - 1)^2 / (2 eps)): a policy
    gradient with a quadratic trust region in place of PPO's clipping; eps 0 leaves it out. A target
    and its base agree outside the mask, hence d = 0 there.

    The paper has a velocity; a prediction of x_0, which points the other way, has d's sign changed.
    Rewards A are normalised per prompt and clamped to ± adv_clip_max; the paper takes them raw.
    """

    eps: float = 0.1
    adv_clip_max: float = 5.0
    needs_means = True

    def agreement(self, noised: Noised) -> Tensor:
        moved = noised.output - noised.old  # log r, multiplied out: mean d^2 may be large
        pull = noised.uphill * self.pull(noised.x0)
        return (moved * (2 * pull - moved)).flatten(2).mean(2)

    @staticmethod
    def pull(x0: Tensor) -> Tensor:
        """d of both sides, from their final latents, (N, 2, C, h, w); 0 for equal images."""
        half = (x0 - x0.flip(1)) / 2
        return half / (half.square().mean((2, 3, 4), keepdim=True) + FLOOR)

    def __call__(self, steps: Steps) -> Value:
        advantage = steps.advantage.clamp(-self.adv_clip_max, self.adv_clip_max)
        weight = (advantage - advantage.flip(1)) / 2
        gain = weight * steps.ratio
        if self.eps:
            gain = gain - weight.abs() * (steps.ratio - 1).square() / (2 * self.eps)
        return Value(-gain.sum(-1))
