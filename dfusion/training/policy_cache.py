"""Results of a frozen policy (theta_old or the initial model) for the steps of a round's pairs."""

import torch
from torch import Tensor


class PolicyCache:
    """Dense tables on the device; NaN marks what is not known.

    log_prob: (P, T, 2). mean: (P, T, 2, C, h, w), if a KL needs it; 0.8 GB for the paper's 320
    pairs on SD2.1.
    """

    def __init__(self, pairs: int, steps: int, device: torch.device) -> None:
        self.log_prob = torch.full((pairs, steps, 2), torch.nan, device=device)
        self.mean: Tensor | None = None

    def keep(self, index: Tensor, log_prob: Tensor, mean: Tensor | None) -> None:
        """index: (B, 2), row and step. log_prob: (B, 2). mean: (B, 2, C, h, w)."""
        row, i = index.unbind(1)
        self.log_prob[row, i] = log_prob.detach()
        if mean is not None:
            if self.mean is None:
                self.mean = mean.new_full((*self.log_prob.shape, *mean.shape[2:]), torch.nan)
            self.mean[row, i] = mean.detach()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tables by name, shaped as above, for a file."""
        found = {f"{name}.log_prob": self.log_prob}
        return found if self.mean is None else {**found, f"{name}.mean": self.mean}

    def restore(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned. Raises ValueError if it belongs to other pairs."""
        device, log_prob = self.log_prob.device, tensors.get(f"{name}.log_prob")
        mean = tensors.get(f"{name}.mean")
        if log_prob is None or log_prob.shape != self.log_prob.shape:
            raise ValueError(f"no {name}.log_prob of {tuple(self.log_prob.shape)}")
        self.log_prob, self.mean = log_prob.to(device), None if mean is None else mean.to(device)
