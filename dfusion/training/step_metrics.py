"""Sums over one optimiser step, by denoising step: what the metrics say of it."""

import torch
from torch import Tensor

from dfusion.method.losses import Loss

MAIN = ("count", "loss", "kl", "kl_initial", "ratio", "clipped", "gradient", "bad_loss",
        "bad_gradient")  # fmt: skip
NAMES = (*MAIN, "shift", "shifts")


class Tally:
    """sums: (len(NAMES), T), on the network's device; one copy at the end brings them to the host.

    bad_loss, bad_gradient: how many steps have one that is NaN or infinite.
    """

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums

    @classmethod
    def empty(cls, steps: int, device: torch.device) -> "Tally":
        return cls(torch.zeros(len(NAMES), steps, device=device))

    def add(
        self, i: Tensor, loss: Loss, weight: Tensor, gradient: Tensor, kl: Tensor,
        kl_initial: Tensor, sound: Tensor,
    ) -> None:  # fmt: skip
        """i: (B,) steps. weight: (B,) of their losses. kl, kl_initial: (B, 2).

        gradient: (B,) norm of the weighted loss's gradient at the network's output. sound: (B, 2)
        whether loss and gradient are finite.
        """
        rows = (
            *(torch.ones_like(weight), loss.value.detach() * weight),
            *(kl.detach().mean(-1), kl_initial.detach().mean(-1)),
            *(loss.ratio.mean(-1), loss.clipped.float().mean(-1), gradient),
            *(~sound).float().T,
        )
        self.sums[: len(MAIN)].index_add_(1, i, torch.stack(rows))

    def add_shift(self, i: Tensor, shift: Tensor, counts: Tensor) -> None:
        """shift: (B,) |mean fused - mean unfused| / std of targets, root mean square.

        counts: (B,) bool, of which steps it is.
        """
        rows = torch.stack([shift.where(counts, 0.0), counts.float()])
        self.sums[len(MAIN) :].index_add_(1, i, rows)

    def of(self, name: str) -> Tensor:
        """(T,) sums."""
        return self.sums[NAMES.index(name)]

    def figures(self) -> dict[str, object]:
        """Plain numbers; lists run over steps t = T … 1, None where nothing is known."""
        count, gradient = self.of("count"), self.of("gradient")
        total = max(1.0, float(count.sum()))
        means = {
            name: float(self.of(name).sum()) / total
            for name in ("loss", "kl", "kl_initial", "ratio")
        }
        return {
            **means,
            "clip_fraction": _means(self.of("clipped"), count),
            "gradient_share": (gradient / gradient.sum().clamp(min=1e-12)).tolist(),
            "fusion_shift": _means(self.of("shift"), self.of("shifts")),
        }


def _means(sums: Tensor, counts: Tensor) -> list[float | None]:
    return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
