"""The pictures of trajectories and targets, refused where a number is not finite."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfusion.errors import NotFiniteError, UserError
from dfusion.method.fusion import Target
from dfusion.method.sampling import Policy, Trajectory

TRY = "try --config.mixed_precision bf16 or no"


def decoded(policy: Policy, results: Sequence[Trajectory | Target], names: Sequence[str]) -> Tensor:
    """Decoded images, uint8 (B, H, W, 3). Raises UserError if a state is NaN or infinite."""
    for result, name in zip(results, names, strict=True):
        good = result.latents.isfinite().flatten(1).all(1)
        if not good.all():
            step = len(policy.sampler) - int(good.long().argmin()) + 1
            raise UserError(
                f"round {policy.round}, {name}: NaN or Inf after step t = {step}; {TRY}"
            )
        if isinstance(result, Trajectory) and not result.maps.isfinite().all():
            raise UserError(f"round {policy.round}, {name}: NaN or Inf in its item maps; {TRY}")
    try:
        return policy.model.decode(torch.stack([r.latents[-1] for r in results]))
    except NotFiniteError as error:
        raise UserError(
            f"round {policy.round}, {names[error.index]}: NaN or Inf in its decoded image; are the "
            "VAE's weights whole?"
        ) from error
