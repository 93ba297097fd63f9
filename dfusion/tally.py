"""Sums over one optimiser step, by denoising step: what the metrics say of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dfusion.losses import Loss

NAMES = (
    *("count", "loss", "kl", "kl_initial", "ratio", "clipped", "gradient"),
    *("shift", "shifts"),
)


@dataclass
class Tally:
    """steps: T. sums: by NAMES, (T,) each, on the network's device until `figures` asks."""

    steps: int
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self, i: Tensor, loss: Loss, weight: Tensor, gradient: Tensor, kl: Tensor,
        kl_initial: Tensor,
    ) -> None:  # fmt: skip
        """i: (B,) steps. weight: (B,) of their losses. kl, kl_initial: (B, 2).

        gradient: (B,) norm of the weighted loss's gradient at the network's output.
        """
        self._sum("count", i, torch.ones_like(weight))
        self._sum("loss", i, loss.value.detach() * weight)
        self._sum("kl", i, kl.detach().mean(-1))
        self._sum("kl_initial", i, kl_initial.detach().mean(-1))
        self._sum("ratio", i, loss.ratio.mean(-1))
        self._sum("clipped", i, loss.clipped.float().mean(-1))
        self._sum("gradient", i, gradient)

    def add_shift(self, i: Tensor, shift: Tensor) -> None:
        """shift: (B,) |mean fused - mean unfused| / std of targets, root mean square."""
        self._sum("shift", i, shift)
        self._sum("shifts", i, torch.ones_like(shift))

    def _sum(self, name: str, i: Tensor, values: Tensor) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros(self.steps, device=values.device)
        self.sums[name].index_add_(0, i.to(values.device), values.float())

    def over_processes(self, add: Callable[[Tensor], Tensor]) -> "Tally":
        """The sums of all processes; add: turns a tensor into its sum over them."""
        device = self.sums["count"].device
        own = [self.sums.get(name, torch.zeros(self.steps, device=device)) for name in NAMES]
        return Tally(self.steps, dict(zip(NAMES, add(torch.stack(own)), strict=True)))

    def of(self, name: str) -> Tensor:
        """(T,) sums on the CPU; zeros where nothing was added."""
        return self.sums.get(name, torch.zeros(self.steps)).cpu()

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
