"""Sums over one optimiser step, by denoising step, from which its metrics are computed."""

import torch
from torch import Tensor

from dfusion.method.losses import Steps, Value

MAIN = ("count", "loss", "kl", "kl_initial", "ratio", "margin", "preferred", "clipped",
        "gradient", "bad_loss", "bad_gradient")  # fmt: skip
NAMES = (*MAIN, "shift", "shifts")


class Tally:
    """sums: (len(NAMES), T), on the network's device; one copy at the end brings them to the host.

    bad_loss, bad_gradient: number of steps with a NaN or infinite loss or gradient.
    """

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums

    @classmethod
    def empty(cls, steps: int, device: torch.device) -> "Tally":
        return cls(torch.zeros(len(NAMES), steps, device=device))

    def add(
        self,
        i: Tensor,
        steps: Steps,
        value: Value,
        gradient: Tensor,
        kl_initial: Tensor,
        sound: Tensor,
    ) -> None:
        """i: (B,) steps. value: weighted loss (B,). kl_initial: (B, 2).

        gradient: (B,) norm of the weighted loss's gradient at the network's output. sound: (B, 2)
        whether loss and gradient are finite.
        """
        shift = (steps.log_prob - steps.old).detach()
        margin = shift[:, 0] - shift[:, 1]
        clipped = torch.zeros_like(shift) if value.clipped is None else value.clipped.float()
        bad_loss, bad_gradient = (~sound).float().unbind(-1)
        rows = {
            "count": torch.ones_like(margin),
            "loss": value.loss.detach(),
            "kl": steps.kl.detach().mean(-1),
            "kl_initial": kl_initial.detach().mean(-1),
            "ratio": steps.ratio.detach().mean(-1),
            "margin": margin,
            "preferred": (margin.sign() + 1) / 2,
            "clipped": clipped.mean(-1),
            "gradient": gradient,
            "bad_loss": bad_loss,
            "bad_gradient": bad_gradient,
        }
        self.sums[: len(MAIN)].index_add_(1, i, torch.stack([rows[name] for name in MAIN]))

    def add_shift(self, i: Tensor, shift: Tensor, counts: Tensor) -> None:
        """shift: (B,) |mean fused - mean unfused| / std of targets, root mean square.

        counts: (B,) bool, the steps that it is known for.
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
            for name in ("loss", "kl", "kl_initial", "ratio", "margin", "preferred")
        }
        return {
            **means,
            "clip_fraction": _means(self.of("clipped"), count),
            "gradient_share": (gradient / gradient.sum().clamp(min=1e-12)).tolist(),
            "fusion_shift": _means(self.of("shift"), self.of("shifts")),
        }


def _means(sums: Tensor, counts: Tensor) -> list[float | None]:
    return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
