"""Sums over one optimiser step, by denoising step: what the metrics say of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dfusion.losses import Loss

SUMS = ("count", "ratio", "clipped", "gradient", "shift", "shifts")


@dataclass
class Tally:
    """steps: T. All sums but loss, kl and kl_initial are (T,)."""

    steps: int
    loss: float = 0.0
    kl: float = 0.0
    kl_initial: float = 0.0
    count: Tensor = field(init=False)
    ratio: Tensor = field(init=False)
    clipped: Tensor = field(init=False)
    gradient: Tensor = field(init=False)
    shift: Tensor = field(init=False)
    shifts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        for name in SUMS:
            setattr(self, name, torch.zeros(self.steps))

    def add(
        self, i: Tensor, loss: Loss, weight: Tensor, gradient: Tensor, kl: Tensor,
        kl_initial: Tensor,
    ) -> None:  # fmt: skip
        """i: (B,) steps. weight: (B,) of their losses. kl, kl_initial: (B, 2).

        gradient: (B,) norm of the weighted loss's gradient at the network's output.
        """
        self.loss += float((loss.value.detach() * weight).sum())
        self.kl += float(kl.detach().mean(-1).sum())
        self.kl_initial += float(kl_initial.detach().mean(-1).sum())
        self._sum("count", i, torch.ones(len(i)))
        self._sum("ratio", i, loss.ratio.mean(-1))
        self._sum("clipped", i, loss.clipped.float().mean(-1))
        self._sum("gradient", i, gradient)

    def add_shift(self, i: Tensor, shift: Tensor) -> None:
        """shift: (B,) |mean fused - mean unfused| / std of targets, root mean square."""
        self._sum("shift", i, shift)
        self._sum("shifts", i, torch.ones(len(i)))

    def _sum(self, name: str, i: Tensor, values: Tensor) -> None:
        getattr(self, name).index_add_(0, i.cpu(), values.float().cpu())

    def figures(self) -> dict[str, object]:
        """Plain numbers; lists run over steps t = T … 1, None where nothing is known."""
        total = max(1.0, float(self.count.sum()))
        return {
            "loss": self.loss / total,
            "kl": self.kl / total,
            "kl_initial": self.kl_initial / total,
            "ratio": float(self.ratio.sum()) / total,
            "clip_fraction": _means(self.clipped, self.count),
            "gradient_share": (self.gradient / self.gradient.sum().clamp(min=1e-12)).tolist(),
            "fusion_shift": _means(self.shift, self.shifts),
        }


def _means(sums: Tensor, counts: Tensor) -> list[float | None]:
    return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
